"""An engine whose completions have lengths that are known before: the work of a benchmark is the same on every side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from megatron_rapo.data import Stops
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.rollout.endings import Endings


def prescribed_engine(lengths: Mapping[int, int]) -> type[Engine]:
    """Return an engine class that gives each request the length that `lengths` has for its seed, if any."""

    class PrescribedEngine(Engine):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            # vLLM ends the requests; an end-of-sequence token in one of a prescribed length does not.
            self._endings = Endings(Stops(), partial(self.decode, special_tokens=False))

        def _request(self, sampling: Sampling, seed: int, **which: Any) -> Any:
            request = super()._request(sampling, seed, **which)
            if seed in lengths:
                request.max_tokens, request.ignore_eos, request.stop_token_ids = lengths[seed], True, []
            return request

    return PrescribedEngine
