"""Everything that imports megatron: the policy, its parallel layout, scoring, training, checkpoints."""

import logging
import warnings

from megatron_rapo.mcore import cpu_compat

# Each import of megatron.core says again that apex is not installed, which is optional.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
# Its checkpoints use what torch 2.13 deprecates: ShardedTensor and load_state_dict.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(megatron\.core|torch\.distributed)\.")
logging.getLogger("megatron.core.rerun_state_machine").setLevel(logging.ERROR)  # announces that it is off

cpu_compat.install()  # before any module of this package imports megatron.core
