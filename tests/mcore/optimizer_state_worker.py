"""`optimizer_state_worker.py FOLDER` on 6 processes: save and load checkpoints with 6, 4 and 2 of them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.config import Config
from megatron_rapo.mcore import bucket_padding, checkpoint_saver, torch_adam
from megatron_rapo.mcore.checkpoint import load_checkpoint
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.scoring.objective import loss_function
from tests import runs
from tests.groups import end_groups
from tests.launch import write_result
from tests.mcore.optimizer_states import CASES, LAYOUTS, PROCESSES, TIED
from tests.mcore.saving import saved
from tests.patience import COLLECTIVE_S

recorded_rollout = functools.cache(runs.recorded_rollout)
CONTENT = checkpoint_saver.content


def main(folder: Path) -> None:
    rank, found = int(os.environ["RANK"]), {}
    for processes in PROCESSES:
        if rank < processes:
            with world(rank, processes):
                found |= of_world(folder, processes)
                if processes == PROCESSES[-1]:
                    found["unmended"] = unmended(folder)
    if rank == 0:
        write_result(found)


@contextmanager
def world(rank: int, processes: int) -> Iterator[None]:
    """Make the first `processes` the whole world."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    own = dist.PrefixStore(str(processes), store)
    dist.init_process_group("gloo", None, timedelta(seconds=60), processes, rank, own)
    try:
        yield
    finally:
        dist.destroy_process_group()


def of_world(folder: Path, processes: int) -> dict[str, Any]:
    """Run every case that so many processes load. If the layout is that of the checkpoint, save it first."""
    found: dict[str, Any] = {}
    for case in (case for case in CASES if case.loaded_on == processes):
        root = folder / f"{case.model} {case.saved} on {case.saved_on}".replace(" ", "-")
        if case.same_layout:
            before, went_on = save(folder, case.model, case.saved, root)
        policy, config = build(folder, case.model, case.loaded)
        load_checkpoint(root / "step-000001", policy)
        after = state(policy)
        found[case.name] = {"resumed": step(policy, config)}
        end_groups()
        if case.same_layout:
            wrong = [name for name in after if not torch.equal(before[name], after[name])]
            found[case.name] |= {"went_on": went_on, "wrong": gathered(wrong), "tensors": gathered(len(after))}
    return found


def unmended(folder: Path) -> dict[str, str]:
    """Return the errors for checkpoints of unpatched Megatron, with and without digests."""
    said = {}
    for name, content in (("with digests", CONTENT), ("without digests", without_digests)):
        root = folder / name
        with (
            mock.patch.object(bucket_padding, "_without_padding", lambda buffer: buffer.param_index_map),
            mock.patch.object(checkpoint_saver, "content", content),
        ):
            save(folder, TIED, "PP2", root)
        said[name] = refusal(folder, root)
    root = folder / "sound without digests"
    with mock.patch.object(checkpoint_saver, "content", without_digests):
        save(folder, TIED, "PP2", root)
    return said | {"sound, without digests": refusal(folder, root)}


def without_digests(*arguments: Any) -> dict[str, Any]:
    """Return the content of a checkpoint of an older version."""
    return {name: value for name, value in CONTENT(*arguments).items() if name != "digests"}


def refusal(folder: Path, root: Path) -> str:
    policy, _ = build(folder, TIED, "PP2")
    try:
        load_checkpoint(root / "step-000001", policy)
    except CheckpointError as error:
        return str(error)
    finally:
        end_groups()
    return ""


def save(folder: Path, model: str, layout: str, root: Path) -> tuple[dict[str, torch.Tensor], float]:
    """Save a checkpoint after one step. Return this rank's state then, and the next loss."""
    policy, config = build(folder, model, layout)
    step(policy, config)
    saved(root, 1, policy, {"step": 1})
    before = state(policy)
    went_on = step(policy, config)
    end_groups()
    return before, went_on


def state(policy: Policy) -> dict[str, torch.Tensor]:
    """Return weights, master weights, moments and steps of this rank."""
    found = {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}
    for number, part in enumerate(torch_adam.parts(policy.optimizer)):
        masters = [parameter for group in part.optimizer.param_groups for parameter in group["params"]]
        for i, master in enumerate(masters):
            kept = {"master": master.detach(), **part.optimizer.state[master]}
            found |= {f"{number} {i} {name}": torch.as_tensor(value).clone() for name, value in kept.items()}
    return found


def gathered(value: Any) -> list[Any]:
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


def build(folder: Path, model: str, layout: str) -> tuple[Policy, Config]:
    sections = {name: dict(fields) for name, fields in LAYOUTS[layout].items()}
    sections["optimizer"] = {"distributed": True, "lr": 1e-3} | sections.get("optimizer", {})
    config = runs.tiny_config(folder / model, folder, run={"deterministic": True}, **sections)
    parallel = init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0)
    return Policy(config, read_shape(config.model.path), parallel), config


def step(policy: Policy, config: Config) -> float:
    [scored] = policy.score([policy.pack(recorded_rollout(config.model.path, 4))])
    return policy.train_step(scored, loss_function(config, policy.sequence_mean)).means["loss"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
