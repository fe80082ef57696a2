"""`memory_worker.py FOLDER` on 2 processes: measure real policies and engines, and compute what preflight says."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.preflight import memory
from megatron_rapo.rollout import Engine
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.types import TrainingSequence
from tests.groups import end_groups
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.runs import tiny_config

LENGTH, SEQUENCES, TOKENS = 64, 64, 512  # 8 sequences make a full micro-batch
CASES: dict[str, dict[str, Any]] = {
    "TP2": {"parallel": {"tensor": 2}},
    "TP2 SP": {"parallel": {"tensor": 2, "sequence": True}},
    "TP2 SP recompute full": {"parallel": {"tensor": 2, "sequence": True}, "model": {"recompute": "full"}},
    "TP2 recompute selective": {"parallel": {"tensor": 2}, "model": {"recompute": "selective"}},
    "PP2": {"parallel": {"pipeline": 2}},
    "PP2 VPP2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "CP2": {"parallel": {"context": 2}},
    "DP2 distributed, exact": {
        "optimizer": {"distributed": True},
        "algorithm": {"divergence": "forward_kl_exact", "alpha": 0.1},
    },
    "TP2 bf16": {"parallel": {"tensor": 2}, "precision": {"dtype": "bfloat16"}},
}
ENGINES: dict[str, dict[str, Any]] = {  # [rollout]
    "engine TP2": {"tensor": 2},
    "engine FP8": {"fp8": True},
}


class Kept:
    """A tensor that autograd keeps. Counts the bytes of all that are alive, by storage."""

    alive: ClassVar[Counter[int]] = Counter()
    parameters: ClassVar[set[int]] = set()
    lock = threading.Lock()
    most = now = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, storage = tensor, tensor.untyped_storage()
        self.key, self.nbytes = storage.data_ptr(), 0 if storage.data_ptr() in Kept.parameters else storage.nbytes()
        with Kept.lock:
            Kept.alive[self.key] += 1
            if Kept.alive[self.key] == 1:
                Kept.now += self.nbytes
                Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        with Kept.lock:
            Kept.alive[self.key] -= 1
            if not Kept.alive[self.key]:
                Kept.now -= self.nbytes


def main(folder: Path) -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    found = {name: measure(folder, sections) for name, sections in CASES.items()}
    found |= {name: measure_engine(folder, rollout) for name, rollout in ENGINES.items()}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        write_result({"ranks": everyone})
    dist.destroy_process_group()


def measure(folder: Path, sections: dict[str, Any]) -> dict[str, list[int]]:
    """Part -> [measured, computed] bytes of this rank."""
    config = tiny_config(folder / "model", folder, batch={"tokens_per_microbatch": TOKENS}, **sections)
    shape = read_shape(folder / "model")
    policy = Policy(config, shape, init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0))
    [scored] = policy.score([policy.pack(rollout(shape.vocab_size))])
    kept = most_kept(policy, config, scored)
    stage, replicas = policy.parallel.pipeline_group.rank(), policy.parallel.data_context_group.size()
    exact = policy._passes.exact
    measured = {
        "weights": bytes_of([p for chunk in policy.chunks for p in chunk.parameters()]),
        "gradients": sum(buffer.grad_data.nbytes for chunk in policy.wrapped for buffer in chunk.buffers),
        "optimizer": optimizer_bytes(policy),
        "activations": kept,
        "reference": bytes_of(policy.reference._weights) if policy.reference else 0,
        "reference's output layer": exact.head_weight.nbytes if exact else 0,
    }
    states = memory._states_of_stage(shape, config, replicas, "torch", stage)
    computed = {**states["training"], "reference": states["training"]["weights"]}
    end_groups()
    return {part: [value, computed.get(part, 0)] for part, value in measured.items()}


def measure_engine(folder: Path, rollout: dict[str, Any]) -> dict[str, list[int]]:
    """Part -> [measured, computed] bytes of this rank."""
    config = tiny_config(folder / "model", folder, rollout=rollout, precision={"dtype": "bfloat16"})
    engine = Engine(folder / "model", config.rollout, dtype="bfloat16", max_sequence_tokens=256, seed=0)
    [found] = engine._llm.collective_rpc(
        lambda worker: [bytes_of(list(worker.get_model().parameters())), bytes_of(worker.model_runner.kv_caches)]
    )
    engine.close()
    states = memory._states_of_stage(read_shape(folder / "model"), config, 2, "torch", 0)
    return {
        part: [measured, states["rollout"][part]]
        for part, measured in zip(("engine weights", "KV cache"), found, strict=True)
    }


def most_kept(policy: Policy, config: Config, batches: list[Any]) -> int:
    """Return the most bytes that autograd keeps at once in a training step, without parameters."""
    Kept.parameters = {p.untyped_storage().data_ptr() for chunk in policy.chunks for p in chunk.parameters()}
    Kept.most = Kept.now = 0
    Kept.alive.clear()
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        policy.train_step(batches, loss_function(config, policy.sequence_mean))
    return Kept.most


def optimizer_bytes(policy: Policy) -> int:
    """Return the bytes of Adam's moments and of its own copy of the weights, if it has one."""
    models = {p.untyped_storage().data_ptr() for chunk in policy.chunks for p in chunk.parameters()}
    tensors = []
    for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        tensors += [p for group in part.optimizer.param_groups for p in group["params"]]
        tensors += [s[m] for s in part.optimizer.state.values() for m in ("exp_avg", "exp_avg_sq")]
    return bytes_of([t for t in tensors if t.untyped_storage().data_ptr() not in models])


def bytes_of(tensors: list[Any]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def rollout(vocab_size: int) -> list[TrainingSequence]:
    """Make sequences of one length, so that micro-batches are full and attention needs no padding."""
    rng = np.random.default_rng(0)
    return [
        TrainingSequence(
            token_ids=rng.integers(3, vocab_size, LENGTH).astype(np.int32),
            prompt_length=8,
            engine_logprobs=np.full(LENGTH - 8, -5.0, dtype=np.float32),
            advantage=float(i % 2) - 0.5,
            phi=0.9,
            reward=float(i % 2),
        )
        for i in range(SEQUENCES)
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
