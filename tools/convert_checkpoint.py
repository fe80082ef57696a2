#!/usr/bin/env python
"""Convert checkpoints. Same as `megatron-rapo convert`, for scripts that use this path."""

import sys

from megatron_rapo.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
