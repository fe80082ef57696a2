"""`python -m tests.start SCRIPT ARGUMENTS...`: what tests/launch.py has torchrun start, on every process.

SCRIPT runs twice: under another name than `__main__`, where it imports and does nothing else, without a search for
garbage in what it imports (megatron_rapo/runtime/gc_control.py), and then as it is.
"""

import runpy
import sys

from megatron_rapo.runtime import gc_control

del sys.argv[0]
with gc_control.imports():
    runpy.run_path(sys.argv[0], run_name="its imports")
runpy.run_path(sys.argv[0], run_name="__main__")
