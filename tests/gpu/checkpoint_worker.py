"""`checkpoint_worker.py FOLDER` on one process with a GPU: train, save and train on; then load, twice, and train on."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.policy import policy_of
from benchmarks.gpu.settings import precisions, run_config, sequences
from benchmarks.memory import release
from benchmarks.models import QWEN2_SMALL, write_model
from megatron_rapo.config import Config
from megatron_rapo.mcore.checkpoint import load_checkpoint
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.types import TrainingSequence
from tests.launch import write_result
from tests.mcore.saving import saved

STEPS = 2  # before the checkpoint, and after
TOKENS_PER_MICROBATCH, LENGTH, COUNT = 256, 64, 8


def main(folder: Path) -> None:
    init_process_group(timeout_s=120.0)
    write_model(folder / "model", QWEN2_SMALL)
    write_result(round_trips(folder / "model", folder, precisions()))
    dist.destroy_process_group()


def round_trips(model: Path, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    rollout = sequences(QWEN2_SMALL["vocab_size"], count=COUNT, length=LENGTH)
    found: dict[str, Any] = {}
    with deterministic():
        for name in names:
            config = run_config(
                model, name, tokens_per_microbatch=TOKENS_PER_MICROBATCH, optimizer={"lr": 1e-3, "warmup_steps": 3}
            )
            try:
                found[name] = round_trip(config, folder / f"checkpoints {name}".replace(" ", "-"), rollout)
            except Exception:  # of one precision: the others are tried all the same
                found[name] = {"failed": traceback.format_exc()}
            release()
    return found


def round_trip(config: Config, root: Path, rollout: list[TrainingSequence]) -> dict[str, Any]:
    with policy_of(config) as policy:
        trained = [step(policy, rollout) for _ in range(STEPS)]
        checkpoint = saved(root, STEPS, policy, {"step": STEPS})
        weights, scales = dict(policy.hf_tensors()), fp8_scales(policy)
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        went_on = [step(policy, rollout) for _ in range(STEPS)]
    found: dict[str, Any] = {"trained": trained, "went_on": went_on, "scales": len(scales), "resumed": []}
    for _ in range(2):
        with policy_of(config) as policy:
            found["trainer"] = load_checkpoint(checkpoint, policy)
            found["weights_equal"] = all(torch.equal(weights[name], tensor) for name, tensor in policy.hf_tensors())
            found["scales_equal"] = fp8_scales(policy) == scales
            found["resumed"].append([step(policy, rollout) for _ in range(STEPS)])
    return found


def step(policy: Policy, rollout: list[TrainingSequence]) -> dict[str, float]:
    [scored] = policy.score([policy.pack(rollout)])
    return policy.train_step(scored, loss_function(policy.config, policy.sequence_mean)).means


def fp8_scales(policy: Policy) -> dict[str, list[Any]]:
    """What delayed scaling goes by, of each of Transformer Engine's linears: scales and the largest magnitudes."""
    found = {}
    for number, chunk in enumerate(policy.chunks):
        for name, module in chunk.named_modules():
            for kind, state in getattr(module, "fp8_meta", {}).items() if hasattr(module, "weight") else ():
                if hasattr(state, "amax_history"):
                    found[f"{number} {name} {kind}"] = [state.scale.tolist(), state.amax_history.tolist()]
    return found


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that give the same bits again, where there are such; test_checkpoint.py sets what libraries read."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
