"""A policy to measure, in a world of one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core import parallel_state

from benchmarks.gpu.settings import TIMEOUT_S
from megatron_rapo.config import Config
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape


@contextmanager
def policy_of(config: Config) -> Iterator[Policy]:
    """The policy of `config`, with process groups of its own. torch.distributed must be there."""
    try:
        parallel = init_parallel(config.parallel, timeout_s=TIMEOUT_S, seed=0)
        yield Policy(config, read_shape(config.model.path), parallel)
    finally:
        parallel_state.destroy_model_parallel()
        _forget_fp8()


def _forget_fp8() -> None:
    """What Transformer Engine keeps for all layers of a process, those of a policy that is no more among them."""
    if "transformer_engine.pytorch" in sys.modules:
        sys.modules["transformer_engine.pytorch.fp8"].FP8GlobalStateManager.reset()
