#!/usr/bin/env python
"""Open TensorBoard on runs: the same as `megatron-rapo tensorboard`, for scripts that name this file."""

import sys

from megatron_rapo.cli import main

if __name__ == "__main__":
    sys.exit(main(["tensorboard", *sys.argv[1:]]))
