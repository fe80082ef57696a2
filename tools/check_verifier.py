#!/usr/bin/env python
"""Measure the verifier. Same as `megatron-rapo check-verifier`, for scripts that use this path."""

import sys

from megatron_rapo.cli import main

if __name__ == "__main__":
    sys.exit(main(["check-verifier", *sys.argv[1:]]))
