"""Build a run's model as each of its processes would, on one process and without memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rapo.config import Config
from megatron_rapo.mcore.model import build_chunks, named_parameters, norm_names, transformer_config
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import trainer_shards
from megatron_rapo.runtime.devices import Backend


@dataclass(frozen=True)
class Built:
    """The model part that one process would hold."""

    rank: int
    stage: int
    numel: int


def dry_run(config: Config, model: ModelShape, *, world: int) -> list[Built]:
    """Build the first process of every pipeline stage, and check its parameters against the parameter map.

    No other process group may exist. Raises RuntimeError if Megatron builds a different model than the map describes.
    """
    return [_build(config, model, rank, world) for rank in range(0, world, world // config.parallel.pipeline)]


def _build(config: Config, model: ModelShape, rank: int, world: int) -> Built:
    with _process(rank, world):
        parallel = init_parallel(config.parallel, timeout_s=config.run.timeout_s, seed=config.run.seed)
        parallel = dataclasses.replace(parallel, device=torch.device("meta"))
        backend = Backend.resolve(config)
        with torch.device("meta"):
            chunks = build_chunks(config, model, backend, transformer_config(config, model, backend), parallel)
        found = {name: tuple(parameter.shape) for name, parameter in named_parameters(chunks)}
        tensor = parallel.tensor_group
        table = trainer_shards(model, tensor=tensor.size(), rank=tensor.rank(), norms=norm_names(backend))
        for name, shape in found.items():
            if name not in table or table[name].shape != shape:
                expected = table[name].shape if name in table else "nothing"
                raise RuntimeError(f"rank {rank}: {name} has shape {shape}, and the parameter map says {expected}.")
        numel = sum(parameter.numel() for _, parameter in named_parameters(chunks))
        return Built(rank, parallel.pipeline_group.rank(), numel)


@contextmanager
def _process(rank: int, world: int) -> Iterator[None]:
    """Act as process `rank` of `world` within this context. Collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
