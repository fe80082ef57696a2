"""Train and score with Megatron-Core. Only modules of this package import megatron."""

import logging
import warnings

from megatron_rapo.mcore import cpu_compat

# Each import of megatron.core warns again that apex, which is optional, is not installed.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
# Megatron's checkpoints use ShardedTensor and load_state_dict, which torch 2.13 deprecates.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(megatron\.core|torch\.distributed)\.")
logging.getLogger("megatron.core.rerun_state_machine").setLevel(logging.ERROR)  # announces that it is off

cpu_compat.install()  # before any module of this package imports megatron.core
