"""torchrun that ends in one line where its processes have said why: on Ctrl-C, and when one of them fails.

    python tools/torchrun.py --nproc-per-node 2 -m megatron_rapo train CONFIG.toml

torchrun itself adds a traceback of its own innards.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable(logging.ERROR)  # of this process, which does nothing but wait for the others
    try:
        main()
    except SignalException as received:
        sys.exit(128 + received.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode
        what = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        print(f"process {rank} of the run {what}; what it said is above", file=sys.stderr)
        sys.exit(128 - code if code < 0 else code)
