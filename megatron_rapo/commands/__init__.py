"""The sub-commands of `megatron-rapo`, one module each; `cli.py` lists them."""
