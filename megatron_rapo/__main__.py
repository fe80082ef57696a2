"""`python -m megatron_rapo`; guarded, since saving a checkpoint starts a process that imports this module again."""

from megatron_rapo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
