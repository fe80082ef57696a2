"""`python -m megatron_rapo`."""

from megatron_rapo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
