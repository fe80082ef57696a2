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
    """Build the policy of `config` with its own process groups. torch.distributed must be initialised."""
    try:
        parallel = init_parallel(config.parallel, timeout_s=TIMEOUT_S, seed=0)
        yield Policy(config, read_shape(config.model.path), parallel)
    finally:
        parallel_state.destroy_model_parallel()
        _forget_fp8()


def _forget_fp8() -> None:
    """Reset Transformer Engine's global state, which keeps data of all layers, also of deleted policies."""
    if "transformer_engine.pytorch" in sys.modules:
        sys.modules["transformer_engine.pytorch.fp8"].FP8GlobalStateManager.reset()
