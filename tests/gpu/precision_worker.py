"""`precision_worker.py FOLDER` on one process with a GPU: the same training steps in every precision that it has."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.policy import policy_of
from benchmarks.gpu.settings import PRECISIONS, TORCH, precisions, run_config, sequences
from benchmarks.memory import release
from benchmarks.models import QWEN2_1B, write_model
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.scoring.packing import PackedBatch
from tests.gpu.test_precision import STEPS
from tests.launch import write_result

TOKENS = 100  # of the vocabulary, that the rollout is made of


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is trained on, again and again."""

    length: int
    microbatches: int
    tokens_per_microbatch: int
    lr: float


def main(folder: Path) -> None:
    init_process_group(timeout_s=300.0)
    write_model(folder / "model", QWEN2_1B)
    step = Step(length=512, microbatches=2, tokens_per_microbatch=4096, lr=1e-4)
    write_result(train_all(folder / "model", {name: {} for name in precisions()}, step))
    dist.destroy_process_group()


def train_all(model: Path, cases: Mapping[str, dict[str, Any]], step: Step) -> dict[str, Any]:
    """Sections of a configuration, by name: of PRECISIONS, or of a variant of torch's layers; the first is torch's."""
    found: dict[str, Any] = {}
    logp: dict[str, torch.Tensor] = {}
    for name, sections in cases.items():
        try:
            found[name], logp[name] = train(model, name if name in PRECISIONS else TORCH, sections, step)
            gap_T = (logp[name] - logp[TORCH]).abs()
            found[name] |= {"gap_mean": float(gap_T.mean()), "gap_max": float(gap_T.max())}
        except Exception:  # of one precision: the others are tried all the same
            found[name] = {"failed": traceback.format_exc()}
        release()
    return found


def train(
    model: Path, precision: str, sections: dict[str, Any], step: Step
) -> tuple[dict[str, list[float]], torch.Tensor]:
    """Of each step what the rollout's tokens cost before it (nats), loss and gradient; and their log-probabilities."""
    config = run_config(
        model,
        precision,
        tokens_per_microbatch=step.tokens_per_microbatch,
        optimizer={"lr": step.lr},
        algorithm={"divergence": "forward_kl_exact", "alpha": 0.01},
        **sections,
    )
    rollout = sequences(
        read_shape(model).vocab_size,
        count=step.microbatches * step.tokens_per_microbatch // step.length,
        length=step.length,
        tokens=TOKENS,
    )
    logp = []
    found: dict[str, list[float]] = {"nll": [], "loss": [], "grad_norm": [], "entropy": [], "kl": []}
    with policy_of(config) as policy:
        batches = policy.pack(rollout)
        for number in range(STEPS + 1):
            [scored] = policy.score([batches])
            logp.append(sampled_log_probs(scored))
            found["nll"].append(-float(logp[-1].mean()))
            if number < STEPS:
                itself = [replace(batch, engine_logp_T=batch.old_logp_T) for batch in scored]  # sampled by the policy
                means = policy.train_step(itself, loss_function(config, policy.sequence_mean)).means
                for name in found.keys() - {"nll"}:
                    found[name].append(means[name])
    return found, logp[0]


def sampled_log_probs(batches: list[PackedBatch]) -> torch.Tensor:
    """Of all tokens that the loss counts, on the host."""
    found = []
    for batch in batches:
        assert batch.old_logp_T is not None, "one process has the last pipeline stage"
        found.append(batch.old_logp_T[batch.mask_T].cpu())
    return torch.cat(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
