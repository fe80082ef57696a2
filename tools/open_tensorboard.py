#!/usr/bin/env python
"""Open TensorBoard on runs. Same as `megatron-rapo tensorboard`, for scripts that use this path."""

import sys

from megatron_rapo.cli import main

if __name__ == "__main__":
    sys.exit(main(["tensorboard", *sys.argv[1:]]))
