#!/usr/bin/env python
"""Prepare data sets. Same as `megatron-rapo prepare-data`, for scripts that use this path."""

import sys

from megatron_rapo.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare-data", *sys.argv[1:]]))
