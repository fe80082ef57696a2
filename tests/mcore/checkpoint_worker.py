"""Started on 2 processes: train, save, train on; then load under several layouts and train on again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rapo import convert
from megatron_rapo.checkpoints import CheckpointError
from megatron_rapo.config import Config
from megatron_rapo.distributed import init_process_group
from megatron_rapo.hf import read_shape
from megatron_rapo.mcore.checkpoint import load_checkpoint, save_checkpoint
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.objective import loss_function
from tests.launch import write_result
from tests.runs import recorded_rollout, tiny_config

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
    init_process_group(timeout_s=60.0)
    rollout = recorded_rollout(model)
    results: dict[str, Any] = {}
    for saved in LAYOUTS:
        policy, config = build(model, folder, saved)
        for _ in range(2):
            step(policy, config, rollout)
        checkpoint = save_checkpoint(folder / saved.replace(" ", "-"), 2, policy, {"step": 2, "words": ["any", 1]})
        went_on = [step(policy, config, rollout) for _ in range(2)]
        weights = dict(policy.hf_tensors())
        parallel_state.destroy_model_parallel()
        results[f"{saved}, cut up anew"] = {
            "went_on": went_on,
            "resumed": go_on_resharded(checkpoint, model, folder, saved, rollout),
        }
        for loaded in LAYOUTS:
            policy, config = build(model, folder, loaded)
            try:
                state = load_checkpoint(checkpoint, policy)
            except CheckpointError as error:
                results[f"{saved} -> {loaded}"] = {"refused": str(error)}
                parallel_state.destroy_model_parallel()
                continue
            resumed = [step(policy, config, rollout) for _ in range(2)]
            results[f"{saved} -> {loaded}"] = {
                "state": state,
                "went_on": went_on,
                "resumed": resumed,
                "weights_equal": all(torch.equal(t, weights[name]) for name, t in policy.hf_tensors()),
            }
            parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def go_on_resharded(checkpoint: Path, model: Path, folder: Path, saved: str, rollout: Any) -> Any:
    """Two steps from the checkpoint as tools/convert_checkpoint.py cuts it up for another layout."""
    target = checkpoint.with_name(f"{saved} anew".replace(" ", "-")) / checkpoint.name
    if dist.get_rank() == 0:
        layout = convert.Layout(tensor=2, pipeline=2)
        convert.reshard_megatron(checkpoint, target, layout, like=None, processes=1, progress=lambda _: None)
    dist.barrier()
    policy, config = build(model, folder, saved)
    load_checkpoint(target, policy)
    resumed = [step(policy, config, rollout) for _ in range(2)]
    parallel_state.destroy_model_parallel()
    return resumed


def build(model: Path, folder: Path, layout: str) -> tuple[Policy, Config]:
    sections = {name: dict(fields) for name, fields in LAYOUTS[layout].items()}
    sections["optimizer"] = sections.get("optimizer", {}) | {"schedule": "linear", "warmup_steps": 2, "lr": 1e-3}
    config = tiny_config(model, folder, **sections)
    parallel = init_parallel(config.parallel, timeout_s=60.0, seed=0)
    return Policy(config, read_shape(model), parallel), config


def step(policy: Policy, config: Config, rollout: list[Any]) -> dict[str, float]:
    (scored,) = policy.score([policy.pack(rollout)])
    return policy.train_step(scored, loss_function(config, policy.sequence_mean))


if __name__ == "__main__":
    main()
