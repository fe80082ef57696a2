"""Started on several processes: `layout_worker.py FOLDER LAYOUT...`; what each layout computes of the same things."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file, save_file

from megatron_rapo.distributed import init_process_group
from megatron_rapo.hf import read_shape
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.packing import PackedBatch, context_chunks
from megatron_rapo.trainer import batch_loss
from megatron_rapo.types import TrainingSequence
from tests.launch import write_result
from tests.models import load_reference
from tests.runs import recorded_rollout, tiny_config, token_log_probs

# Adam's first update is lr * g / (|g| + eps). With the usual eps it is lr * sign(g): blind to a gradient that is wrong
# by a factor, and a coin toss where rounding decides the sign of a gradient near 0. With an eps of the size of the
# gradients it is a smooth function of their values, which layouts must agree on.
OPTIMIZER = {"eps": 1e-3}


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    init_process_group(timeout_s=60.0)
    results: dict[str, Any] = {}
    for name, (model_name, sections) in layouts.items():
        model = folder / model_name
        config = tiny_config(model, folder, **sections | {"optimizer": OPTIMIZER | sections.get("optimizer", {})})
        parallel = init_parallel(config.parallel, timeout_s=60.0, seed=0)
        policy = Policy(config, read_shape(model), parallel)
        rollout, reference = recorded_rollout(model), load_reference(model)
        batches = policy.pack(rollout)
        logits = over_all_ranks(compare_logits(policy, batches, rollout, reference))
        round_trip = bitwise_equal(policy, model)
        parts = [rollout[:5], rollout[5:]]  # as optimizer steps of their own
        scored, *scored_parts = policy.score([batches, *(policy.pack(part) for part in parts)])
        old, ref = Comparison(), Comparison()
        for sequences, of_step in zip([rollout, *parts], [scored, *scored_parts], strict=True):
            compare_log_probs(policy, of_step, sequences, reference, old, ref)
        loss = partial(batch_loss, settings=config.algorithm)
        steps = [policy.train_step(scored, loss)]
        errors = update_errors(policy, model, save=name.startswith("TP1 "))
        steps += [policy.train_step(scored, loss) for _ in range(2)]
        results[name] = {
            "logits": logits,
            "round_trip": round_trip,
            "policy": over_all_ranks(old),
            "reference": over_all_ranks(ref),
            "steps": steps,
            "update_errors": errors,
        }
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


@dataclass
class Comparison:
    """Of values that this rank has with those that transformers computes."""

    error: float = 0.0  # largest |difference|
    tokens: int = 0

    def add(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        if len(found):
            self.error = max(self.error, float((found - expected).abs().max()))
            self.tokens += len(found)


def over_all_ranks(comparison: Comparison) -> dict[str, float]:
    """Every token is counted once: what the ranks of a tensor-parallel group have in common only on its first."""
    group = parallel_state.get_tensor_model_parallel_group()
    error = torch.tensor(comparison.error)
    tokens = torch.tensor(comparison.tokens if group.rank() == 0 else 0)
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    dist.all_reduce(tokens, op=dist.ReduceOp.SUM)
    return {"error": float(error), "tokens": int(tokens)}


def places_in_sequences(policy: Policy, batch: PackedBatch) -> torch.Tensor:
    """[T] the place of each token that this rank owns in its own sequence."""
    group, cu_seqlens = policy.parallel.context_group, batch.cu_seqlens.long()
    if group.size() == 1:
        place_T = torch.arange(len(batch.token_ids_T))
    else:
        place_T = context_chunks(cu_seqlens, group.size())[group.rank()]
    return place_T - cu_seqlens[torch.searchsorted(cu_seqlens, place_T, right=True) - 1]


@torch.no_grad()
def compare_logits(
    policy: Policy, batches: list[PackedBatch], rollout: list[TrainingSequence], reference: torch.nn.Module
) -> Comparison:
    """Megatron's logits of every token of the rollout, on the last pipeline stage."""

    def forward(data: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        return policy._passes._hidden(chunk, next(data)), lambda hidden, non_loss_data: hidden

    for chunk in policy.wrapped:
        chunk.eval()
    found = policy._passes._run(forward, batches, forward_only=True, collect_non_loss_data=True)
    assert len(found) == (len(batches) if policy.parallel.is_last_stage else 0)
    comparison, group = Comparison(), policy.parallel.tensor_group
    weight = policy._passes.head_weight
    for batch, hidden_TD in zip(batches, found, strict=False):
        logits_TVp = hidden_TD @ weight.T
        parts = [torch.empty_like(logits_TVp) for _ in range(group.size())]
        dist.all_gather(parts, logits_TVp.contiguous(), group=group)
        logits_TV = torch.cat(parts, dim=-1)
        place_T = places_in_sequences(policy, batch)
        for index in batch.sequence_T[batch.sequence_T >= 0].unique().tolist():
            token_ids = torch.from_numpy(rollout[index].token_ids.astype(np.int64))
            expected = reference(token_ids[None]).logits[0]
            chosen = batch.sequence_T == index
            assert torch.equal(batch.token_ids_T[chosen], token_ids[place_T[chosen]])
            comparison.add(logits_TV[chosen, : expected.shape[-1]], expected[place_T[chosen]])
    return comparison


def compare_log_probs(
    policy: Policy,
    scored: list[PackedBatch],
    rollout: list[TrainingSequence],
    reference: torch.nn.Module,
    old: Comparison,
    ref: Comparison,
) -> None:
    """The policy's and the reweighted reference's log-probabilities of sampled tokens, on the last pipeline stage."""
    for batch in scored:
        assert (batch.old_logp_T is None) == (batch.ref_logp_T is None) == (not policy.parallel.is_last_stage)
        if batch.old_logp_T is None or batch.ref_logp_T is None:
            continue
        place_T = places_in_sequences(policy, batch)
        for index in batch.sequence_T[batch.mask_T].unique().tolist():
            sequence = rollout[index]
            chosen = (batch.sequence_T == index) & batch.mask_T
            for comparison, found_T, scale in ((old, batch.old_logp_T, 1.0), (ref, batch.ref_logp_T, sequence.phi)):
                expected = torch.from_numpy(token_log_probs(reference, sequence.token_ids, scale))
                comparison.add(found_T[chosen], expected[place_T[chosen]])


def bitwise_equal(policy: Policy, model: Path) -> bool:
    """On every rank, the HF tensors gathered from all are those of the model's file: names, order-free, every bit."""
    expected, found = load_file(model / "model.safetensors"), dict(policy.hf_tensors())
    equal = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    verdict = torch.tensor(int(equal))
    dist.all_reduce(verdict, op=dist.ReduceOp.MIN)
    return bool(verdict)


def update_errors(policy: Policy, model: Path, *, save: bool) -> dict[str, float]:
    """By HF tensor: |this layout's update - one process's| / |one process's|, L2 norms; the latter is kept in a file.

    The worst of all ranks.
    """
    before, file = load_file(model / "model.safetensors"), model / "update.safetensors"
    update = {name: tensor.float() - before[name] for name, tensor in policy.hf_tensors()}
    if save:
        save_file(update, file)
    expected = load_file(file)
    assert update.keys() == expected.keys()
    errors = torch.stack([(update[name] - u).norm() / u.norm() for name, u in expected.items()])
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    return dict(zip(expected, errors.tolist(), strict=True))


if __name__ == "__main__":
    main()
