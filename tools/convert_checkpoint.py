#!/usr/bin/env python
"""Convert checkpoints: the same as `megatron-rapo convert`, for scripts that name this file."""

import sys

from megatron_rapo.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
