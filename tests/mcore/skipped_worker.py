"""`skipped_worker.py FOLDER` on 2 processes: take optimizer steps, some with a loss that is not finite."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.forward_backward import Trained
from megatron_rapo.mcore.parallel import Parallel, init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.scoring.packing import PackedBatch
from megatron_rapo.training.skipped_steps import SkippedSteps
from tests.groups import end_groups
from tests.launch import write_result
from tests.mcore.test_skipped_steps import CASES
from tests.patience import COLLECTIVE_S
from tests.runs import recorded_rollout, tiny_config


def main(folder: Path) -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    rollout = recorded_rollout(folder / "model")
    results: dict[str, Any] = {}
    for name in CASES:
        undisturbed, weights = train(folder, name, rollout, poisoned=())
        disturbed, same = train(folder, name, rollout, poisoned=(1, 2))
        results[name] = {
            "undisturbed": undisturbed,
            "disturbed": disturbed,
            "weights equal": all(torch.equal(same[tensor], weights[tensor]) for tensor in weights),
        }
    results["said"] = watch(tiny_config(folder / "model", folder, optimizer={"max_skipped_steps": 2}))
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def train(folder: Path, name: str, rollout: Any, *, poisoned: tuple[int, ...]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Take three good steps, with bad ones before some of them. Return their results and the final weights."""
    schedule = {"schedule": "linear", "warmup_steps": 2, "lr": 1e-3, "min_lr": 1e-4}
    sections = CASES[name] | {"optimizer": CASES[name].get("optimizer", {}) | schedule}
    config = tiny_config(folder / "model", folder, **sections)
    policy = Policy(
        config, read_shape(folder / "model"), init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0)
    )
    loss = loss_function(config, policy.sequence_mean)
    found = []
    for number in range(3):
        [scored] = policy.score([policy.pack(rollout)])
        if number in poisoned:
            found.append(policy.train_step([poison(batch, policy.parallel) for batch in scored], loss).means)
        found.append(policy.train_step(scored, loss).means)
    weights = dict(policy.hf_tensors())
    end_groups()
    return [{key: step[key] for key in ("loss", "grad_norm", "lr", "skipped")} for step in found], weights


def poison(batch: PackedBatch, parallel: Parallel) -> PackedBatch:
    """Set an advantage to nan, only on the first data-parallel rank."""
    factor = float("nan") if parallel.data_group.rank() == 0 else 1.0
    return replace(batch, advantage_T=batch.advantage_T * factor)


def watch(config: Config) -> dict[str, Any]:
    """Return the messages and files of skipped steps, and the error after too many."""
    said: list[str] = []
    batch = PackedBatch(**{name: torch.ones(1) for name in PackedBatch.__dataclass_fields__})
    skipped = SkippedSteps(config, said.append)
    good = Trained({"loss": 1.0, "grad_norm": 1.0, "skipped": 0.0}, [batch])
    bad = Trained({"loss": float("nan"), "grad_norm": float("inf"), "skipped": 1.0}, [batch])
    error = ""
    try:
        for step, trained in enumerate((bad, bad, good, bad, bad, bad)):
            assert skipped.watched(step, trained) is trained
    except RuntimeError as raised:
        error = str(raised)
    dist.barrier()
    folder = RunFolder(config.run.folder).not_finite
    [kept] = torch.load(folder / "step-000001-2-rank-0.pt")
    return {
        "error": error,
        "said": said,
        "folder": str(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "kept": sorted(kept),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
