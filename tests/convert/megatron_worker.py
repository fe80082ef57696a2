"""`megatron_worker.py FOLDER` on 4 processes: load converted checkpoints with Megatron, and save some to convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megatron_rapo.mcore.optimizer import allocate_state
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from tests.convert.test_conversion import CONVERTED, FAMILIES, LAYOUTS
from tests.groups import end_groups
from tests.launch import write_result
from tests.mcore.saving import saved
from tests.patience import COLLECTIVE_S
from tests.runs import tiny_config


def main(folder: Path) -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    results: dict[str, Any] = {}
    for family in FAMILIES:
        for layout, parallel in LAYOUTS.items():
            policy = build(folder / family / "model", folder, parallel)
            expected = {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}
            for converted in CONVERTED:
                load(folder / family / converted, policy)
                same = all(torch.equal(parameter, expected[name]) for name, parameter in policy.parameters.items())
                results[f"{family}: {converted} -> {layout}"] = on_every_rank(same)
            if layout != "TP1":
                give_optimizer_a_state(policy)
                saved(folder / family / "runs" / layout, 3, policy, {"step": 3})
            end_groups()
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def build(model: Path, folder: Path, parallel: dict[str, int]) -> Policy:
    config = tiny_config(model, folder, parallel=parallel)
    return Policy(config, read_shape(model), init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0))


def give_optimizer_a_state(policy: Policy) -> None:
    """Set random moments, like those of a run that has trained."""
    allocate_state(policy.optimizer)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        for state in part.optimizer.state.values():
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                moment.copy_(torch.rand(moment.shape, generator=generator))


def load(checkpoint: Path, policy: Policy) -> None:
    """Load a checkpoint with Megatron into weights with other values."""
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.fill_(7.0)
    states = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(policy.chunks)}
    loaded = dist_checkpointing.load(states, str(checkpoint))
    for i, chunk in enumerate(policy.chunks):
        chunk.load_state_dict(loaded[f"model{i}"])


def on_every_rank(ours: bool) -> bool:
    everyone = torch.tensor(int(ours))
    dist.all_reduce(everyone, op=dist.ReduceOp.MIN)
    return bool(everyone)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
