"""Train, save and continue; then load under several layouts and continue again. Runs on 2 processes."""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.config import Config
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.reshard import reshard_megatron
from megatron_rapo.mcore import checkpoint_writer
from megatron_rapo.mcore.checkpoint import load_checkpoint
from megatron_rapo.mcore.checkpoint_saver import Saver
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.types import TrainingSequence
from tests.groups import end_groups
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.runs import recorded_rollout, tiny_config

WRITE = checkpoint_writer.write
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"parallel": {"tensor": 2}},
    "PP2": {"parallel": {"pipeline": 2}},
    "PP2 VPP2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "DP2": {},
    "DP2 distributed": {"optimizer": {"distributed": True}},
    "DP2 bf16 distributed": {"optimizer": {"distributed": True}, "precision": {"dtype": "bfloat16"}},
}


def main() -> None:
    folder = Path(sys.argv[1])
    model = folder / "model"
    init_process_group(timeout_s=COLLECTIVE_S)
    rollout = recorded_rollout(model)
    results: dict[str, Any] = {}
    for saved in LAYOUTS:
        policy, config = build(model, folder, saved)
        for _ in range(2):
            step(policy, config, rollout)
        checkpoint, went_on, drawn = save_while_going_on(policy, config, folder / saved.replace(" ", "-"), rollout)
        weights, state = dict(policy.hf_tensors()), optimizer_tensors(policy)
        end_groups()
        results[f"{saved}, cut up anew"] = {
            "went_on": went_on,
            "resumed": go_on_resharded(checkpoint, model, folder, saved, rollout),
        }
        for loaded in LAYOUTS:
            policy, config = build(model, folder, loaded)
            try:
                trainer = load_checkpoint(checkpoint, policy)
            except CheckpointError as error:
                results[f"{saved} -> {loaded}"] = {"refused": str(error)}
                end_groups()
                continue
            drawn_again = random_numbers()
            resumed = [step(policy, config, rollout) for _ in range(2)]
            results[f"{saved} -> {loaded}"] = {
                "state": trainer,
                "went_on": went_on,
                "resumed": resumed,
                "random_equal": on_all(drawn_again == drawn),
                "weights_equal": all(torch.equal(t, weights[name]) for name, t in policy.hf_tensors()),
                "optimizer_equal": saved == loaded and on_all(same(optimizer_tensors(policy), state)),
            }
            end_groups()
    results["full disk"] = full_disk(model, folder)
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def save_while_going_on(
    policy: Policy, config: Config, root: Path, rollout: list[TrainingSequence]
) -> tuple[Path, list[dict[str, float]], list[float]]:
    """Return a checkpoint, the results of two more steps before it is written, and random numbers at its time."""
    saver, gone_on = Saver(root, policy), threading.Event()
    with mock.patch.object(checkpoint_writer, "write", lambda files: gone_on.wait() and WRITE(files)):
        checkpoint = saver.save(2, {"step": 2, "words": ["any", 1]})
    drawn = random_numbers()
    went_on = [step(policy, config, rollout) for _ in range(2)]
    saver.poll()
    assert not checkpoint.exists()
    gone_on.set()
    saver.finish()
    return checkpoint, went_on, drawn


def full_disk(model: Path, folder: Path) -> dict[str, Any]:
    """Save a checkpoint, and one that does not fit on the last rank's disk. Return the errors and what is left."""
    policy, _ = build(model, folder, "TP2")
    root = folder / "full"
    saver = Saver(root, policy)
    saver.save(1, {})
    saver.finish()
    last = dist.get_rank() == dist.get_world_size() - 1
    with mock.patch.object(checkpoint_writer, "write", to_full_disk if last else WRITE):
        saver.save(2, {})
    said: list[str] = [""] * dist.get_world_size()
    try:
        saver.finish()
    except CheckpointError as error:
        dist.all_gather_object(said, str(error))
    left = sorted(path.name for path in root.iterdir())
    dist.barrier()
    saver.save(3, {})
    saver.finish()
    end_groups()
    return {"said": said, "left": left, "then": sorted(path.name for path in root.iterdir())}


def to_full_disk(files: Sequence[checkpoint_writer.Content]) -> checkpoint_writer.Outcome:
    return WRITE([dataclasses.replace(file, path=Path("/dev/full")) for file in files])


def random_numbers() -> list[float]:
    """Return random numbers of every generator on the host, different ones on each rank."""
    for generator in (random.random, np.random.random, lambda: float(torch.rand(()))):
        for _ in range(dist.get_rank()):
            generator()
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def optimizer_tensors(policy: Policy) -> list[torch.Tensor]:
    """Return the tensors that this rank's Adam updates and keeps, by parameter."""
    found = []
    for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        for parameter in (p for group in part.optimizer.param_groups for p in group["params"]):
            state = part.optimizer.state[parameter]
            found += [parameter.detach().clone(), *(torch.as_tensor(state[name]).clone() for name in sorted(state))]
    return found


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def on_all(fact: bool) -> bool:
    value = torch.tensor(int(fact))
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value)


def go_on_resharded(checkpoint: Path, model: Path, folder: Path, saved: str, rollout: Any) -> Any:
    """Take two steps from the checkpoint after `megatron-rapo convert` has resharded it for another layout."""
    target = checkpoint.with_name(f"{saved} anew".replace(" ", "-")) / checkpoint.name
    if dist.get_rank() == 0:
        layout = Layout(tensor=2, pipeline=2)
        reshard_megatron(checkpoint, target, layout, like=None, processes=1, progress=lambda _: None)
    dist.barrier()
    policy, config = build(model, folder, saved)
    load_checkpoint(target, policy)
    resumed = [step(policy, config, rollout) for _ in range(2)]
    end_groups()
    return resumed


def build(model: Path, folder: Path, layout: str) -> tuple[Policy, Config]:
    sections = {name: dict(fields) for name, fields in LAYOUTS[layout].items()}
    sections["optimizer"] = sections.get("optimizer", {}) | {"schedule": "linear", "warmup_steps": 2, "lr": 1e-3}
    config = tiny_config(model, folder, run={"deterministic": True}, **sections)
    parallel = init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0)
    return Policy(config, read_shape(model), parallel), config


def step(policy: Policy, config: Config, rollout: list[Any]) -> dict[str, float]:
    (scored,) = policy.score([policy.pack(rollout)])
    return policy.train_step(scored, loss_function(config, policy.sequence_mean)).means


if __name__ == "__main__":
    main()
