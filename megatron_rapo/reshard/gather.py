"""Gather Megatron's shards into a stream of whole Hugging Face tensors on every rank.

Simple and correct, not fast: each parameter is gathered over its tensor-parallel group and broadcast over the pipeline,
one at a time. Extra memory: about twice the largest parameter, plus what the engine collects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import OUTPUT, NormNames, merge, trainer_shards


class ShardedWeights:
    """The policy's weights across its tensor- and pipeline-parallel ranks.

    `parameters` are this rank's, by the map's names (global layer numbers). Construction and iteration are collective
    over both groups.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        model: ModelShape,
        norms: NormNames,
        *,
        tensor_group: dist.ProcessGroup,
        pipeline_group: dist.ProcessGroup,
    ) -> None:
        self._parameters = parameters
        self._tensor_group, self._pipeline_group = tensor_group, pipeline_group
        size = tensor_group.size()
        self._shards = [trainer_shards(model, tensor=size, rank=rank, norms=norms) for rank in range(size)]
        held: list[set[str]] = [set() for _ in range(pipeline_group.size())]
        dist.all_gather_object(held, set(parameters), group=pipeline_group)
        self._stage = {name: stage for stage in reversed(range(len(held))) for name in held[stage]}
        skipped = {OUTPUT} if model.tied else set()  # the last stage's copy of the embedding
        self._names = [name for name in self._shards[0] if name not in skipped]
        missing = set(self._names) - set(self._stage)
        assert not missing, f"no pipeline stage holds {sorted(missing)}"
        first = next(iter(parameters.values()))
        self._dtype, self._device = first.dtype, first.device

    def hf_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every HF tensor once, whole, in the same order on every rank. Every rank must consume all of them."""
        for name in self._names:
            yield from merge(self._gather(name), [by_name[name] for by_name in self._shards])

    def _gather(self, name: str) -> list[Tensor]:
        """Return the shards of all tensor ranks of one parameter."""
        shard, stage = self._shards[self._tensor_group.rank()][name], self._stage[name]
        size = self._tensor_group.size() if shard.split else 1
        parts = [torch.empty(shard.shape, dtype=self._dtype, device=self._device) for _ in range(size)]
        if self._pipeline_group.rank() == stage:
            local = self._parameters[name].detach().contiguous()
            if shard.split:
                dist.all_gather(parts, local, group=self._tensor_group)
            else:
                parts[0].copy_(local)
        if self._pipeline_group.size() > 1:
            for part in parts:
                dist.broadcast(part, group=self._pipeline_group, group_src=stage)
        return parts * (self._tensor_group.size() // size)
