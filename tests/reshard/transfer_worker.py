"""`transfer_worker.py` on 4 processes: execute the plan over gloo, and let the proof find faults."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import TORCH_NORMS, engine_shards, fill
from megatron_rapo.reshard.plan import Layouts, plan
from megatron_rapo.reshard.transfer import Resharder, ReshardError
from megatron_rapo.rollout.weights import PlainWeights
from tests.launch import write_result
from tests.models.test_parameter_map import hf_weights, shape
from tests.patience import COLLECTIVE_S
from tests.reshard.test_plan import BIG, trainer_parameters

LAYOUTS = {
    "TP2 x PP2 -> TP1": (2, 2, 1),
    "TP2 x PP2 -> TP2": (2, 2, 2),
    "TP2 x DP2 -> TP2": (2, 1, 2),
    "TP2 x DP2 -> TP4": (2, 1, 4),
    "PP4 -> TP4": (1, 4, 4),
    "TP4 -> TP1": (4, 1, 1),
}
MODEL = shape(**BIG | {"num_layers": 5}, vocab_size=133, tied=True)
GATE_UP, DOWN = "model.layers.3.mlp.gate_up_proj.weight", "model.layers.2.mlp.down_proj.weight"


def layouts_of(tensor: int, pipeline: int, engine: int) -> Layouts:
    return Layouts(world=dist.get_world_size(), tensor=tensor, pipeline=pipeline, engine_tensor=engine)


def targets_of(model: ModelShape, layouts: Layouts, dtype: torch.dtype) -> dict[str, Tensor]:
    shards = engine_shards(model, tensor=layouts.engine_tensor, rank=dist.get_rank() % layouts.engine_tensor)
    return {name: torch.zeros(shard.shape, dtype=dtype) for name, shard in shards.items()}


def resharder_of(
    model: ModelShape,
    layouts: Layouts,
    dtype: torch.dtype,
    *,
    seed: int,
    bucket_bytes: int = 1 << 30,
    large_bytes: int = 1 << 20,
) -> Resharder:
    _, read = hf_weights(model, seed)
    mine = trainer_parameters(model, layouts, read)[dist.get_rank()]
    rounds = plan(model, TORCH_NORMS, layouts, rank=dist.get_rank(), itemsize=dtype.itemsize, bucket_bytes=bucket_bytes)
    return Resharder({name: tensor.to(dtype) for name, tensor in mine.items()}, rounds, large_bytes=large_bytes)


def right(model: ModelShape, layouts: Layouts, targets: dict[str, Tensor], seed: int) -> bool:
    """Compare the engine's shards bit by bit with the parameter map."""
    _, read = hf_weights(model, seed)
    shards = engine_shards(model, tensor=layouts.engine_tensor, rank=dist.get_rank() % layouts.engine_tensor)
    for name, shard in shards.items():
        expected = torch.zeros(shard.shape)
        fill(expected, shard, read)
        if not torch.equal(targets[name], expected.to(targets[name].dtype)):
            return False
    return targets.keys() == shards.keys()


def transfers() -> dict[str, Any]:
    """Reshard every layout with one large round and with many small ones, twice with different weights."""
    found = {}
    for name, sizes in LAYOUTS.items():
        layouts = layouts_of(*sizes)
        for dtype, bucket_bytes, large_bytes in ((torch.float32, 1 << 30, 1000), (torch.bfloat16, 4000, 1 << 20)):
            targets = targets_of(MODEL, layouts, dtype)
            weights = PlainWeights(targets)
            for seed in (0, 1):
                sizes_of = {"bucket_bytes": bucket_bytes, "large_bytes": large_bytes}
                resharder = resharder_of(MODEL, layouts, dtype, seed=seed, **sizes_of)
                report = resharder.run(weights, version=seed, prove=True)
                correct = torch.tensor(right(MODEL, layouts, targets, seed))
                dist.all_reduce(correct, op=dist.ReduceOp.MIN)
                found[f"{name}, {str(dtype)[6:]}, {seed}"] = bool(correct)
            written = sum(t.numel() for t in targets.values()) * dtype.itemsize
            came = report.bytes_copied + report.bytes_received
            found[f"{name}, {str(dtype)[6:]}, bytes"] = [came <= written, came > 0.7 * written]  # the rest is padding
            found[f"{name}, {str(dtype)[6:]}, seconds"] = sorted(report.seconds)
    return found


class FlippedBit(PlainWeights):
    """Flip a bit in the memory of rank 2 after everything was written."""

    def complete(self, name: str) -> None:
        if name == DOWN and dist.get_rank() == 2:
            self.target(name).view(torch.int32)[5, 1] ^= 1 << 3


class SkippedTensor(PlainWeights):
    """Lose the writes to a parameter of rank 1."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__(parameters)
        self._lost: Tensor | None = None

    def target(self, name: str) -> Tensor:
        if name != DOWN or dist.get_rank() != 1 or self._lost is None:
            return super().target(name)
        return self._lost

    def lose(self, on: bool) -> None:
        self._lost = torch.empty_like(super().target(DOWN)) if on else None

    def complete(self, name: str) -> None:
        if name == DOWN:
            self.lose(False)


class SwappedGateUp(PlainWeights):
    """gate_up_proj is [up, gate], on every rank."""

    def complete(self, name: str) -> None:
        if name == GATE_UP:
            target = self.target(name)
            target.copy_(target.roll(len(target) // 2, dims=0))


def faults() -> dict[str, Any]:
    layouts = layouts_of(2, 2, 2)
    old = resharder_of(MODEL, layouts, torch.float32, seed=0)
    new = resharder_of(MODEL, layouts, torch.float32, seed=1)

    def error_of(make: Callable[[dict[str, Tensor]], PlainWeights], *, prove: bool = True, version: int = 1) -> str:
        targets = targets_of(MODEL, layouts, torch.float32)
        old.run(PlainWeights(targets), version=0, prove=True)
        weights = make(targets)
        if isinstance(weights, SkippedTensor):
            weights.lose(True)
        try:
            new.run(weights, version=version, prove=prove)
        except ReshardError as error:
            return str(error)
        return "no error"

    return {
        "none": error_of(PlainWeights),
        "flipped bit": error_of(FlippedBit),
        "skipped tensor": error_of(SkippedTensor),
        "swapped gate and up": error_of(SwappedGateUp),
        "another version on rank 3": error_of(PlainWeights, version=0 if dist.get_rank() == 3 else 1),
        "unproven": error_of(FlippedBit, prove=False),
    }


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE_S))
    result: dict[str, Any] = {"transfers": transfers()}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, faults())
    if dist.get_rank() == 0:
        write_result(result | {"faults": everyone})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
