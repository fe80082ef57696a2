"""`offload_worker.py FOLDER` on 2 processes: train with the training state in place, then offloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.checkpoint import load_checkpoint
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.types import TrainingSequence
from tests.groups import end_groups
from tests.launch import write_result
from tests.mcore.saving import saved
from tests.mcore.test_offload import CASES
from tests.patience import COLLECTIVE_S
from tests.runs import recorded_rollout, tiny_config

STEPS = 3


def main() -> None:
    folder = Path(sys.argv[1])
    init_process_group(timeout_s=COLLECTIVE_S)
    rollout = recorded_rollout(folder / "model")
    results = {name: compare(folder, name, rollout) for name in CASES}
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def compare(folder: Path, name: str, rollout: list[TrainingSequence]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    runs = {}
    for offload in (False, True):
        policy, config = build(folder, name, offload=offload)
        if offload:
            found["away at first"] = optimizer_bytes(policy) + gradient_bytes(policy)
            found["refusal"] = refusal(policy, config, rollout)
        norms = [step(policy, config, rollout) for _ in range(STEPS)]
        bytes_after = optimizer_bytes(policy) + gradient_bytes(policy)
        found["away" if offload else "in place"] = bytes_after
        checkpoint = saved(folder / f"{name}-{offload}".replace(" ", "-"), STEPS, policy, {})
        norms.append(step(policy, config, rollout))
        runs[offload] = norms, dict(policy.hf_tensors())
        end_groups()
    policy, config = build(folder, name, offload=True)
    load_checkpoint(checkpoint, policy)
    resumed = step(policy, config, rollout)
    end_groups()
    (plain, plain_weights), (offloaded, offloaded_weights) = runs[False], runs[True]
    found["norms"], found["norms with offload"], found["norm resumed"] = plain, offloaded, resumed
    found["weights equal"] = all(torch.equal(plain_weights[n], offloaded_weights[n]) for n in plain_weights)
    return found


def build(folder: Path, name: str, *, offload: bool) -> tuple[Policy, Config]:
    sections = CASES[name] | {"memory": {"offload_optimizer": offload}}
    config = tiny_config(folder / "model", folder, **sections)
    parallel = init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0)
    return Policy(config, read_shape(folder / "model"), parallel), config


def step(policy: Policy, config: Config, rollout: list[TrainingSequence]) -> float:
    """Score and train. Return the gradient's norm before and in the update."""
    [scored] = policy.score([policy.pack(rollout)])
    loss = loss_function(config, policy.sequence_mean)
    with policy.training_state.in_place():
        measured = policy.gradient_norm(scored, loss)
        norm = policy.train_step(scored, loss).means["grad_norm"]
    assert measured == norm
    return norm


def refusal(policy: Policy, config: Config, rollout: list[TrainingSequence]) -> str:
    [scored] = policy.score([policy.pack(rollout)])
    try:
        policy.train_step(scored, loss_function(config, policy.sequence_mean))
    except RuntimeError as error:
        return str(error)
    return ""


def optimizer_bytes(policy: Policy) -> int:
    """Return the memory of Adam's moments on this rank."""
    parts = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
    states = [state for part in parts for state in part.optimizer.state.values()]
    return sum(state[m].untyped_storage().nbytes() for state in states for m in ("exp_avg", "exp_avg_sq") if m in state)


def gradient_bytes(policy: Policy) -> int:
    return sum(buffer.grad_data.untyped_storage().nbytes() for chunk in policy.wrapped for buffer in chunk.buffers)


if __name__ == "__main__":
    main()
