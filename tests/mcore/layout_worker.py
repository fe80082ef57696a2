"""Started on several processes: `layout_worker.py FOLDER LAYOUT...`; what each layout computes of the same things."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file

from megatron_rapo.distributed import init_process_group
from megatron_rapo.hf import read_shape
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.packing import PackedBatch
from megatron_rapo.trainer import batch_loss
from tests.launch import write_result
from tests.models import load_reference
from tests.runs import recorded_rollout, tiny_config, token_log_probs


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    init_process_group(timeout_s=60.0)
    results: dict[str, Any] = {}
    for name, (model_name, sections) in layouts.items():
        model = folder / model_name
        config = tiny_config(model, folder, **sections)
        shape = read_shape(model)
        parallel = init_parallel(config.parallel, timeout_s=60.0, seed=0)
        policy = Policy(config, shape, parallel)
        rollout = recorded_rollout(model)
        batches = policy.pack(rollout)
        logit_error = largest(logits_error(policy, batches, model, shape.vocab_size))
        round_trip = bitwise_equal(policy, model)
        scored = policy.score(batches)
        score_errors = [largest(error) for error in log_prob_errors(policy, scored, rollout, model)]
        loss = partial(batch_loss, settings=config.algorithm)
        steps = [policy.train_step(scored, loss) for _ in range(3)]
        results[name] = {
            "logit_error": logit_error,
            "round_trip": round_trip,
            "policy_error": score_errors[0],
            "reference_error": score_errors[1],
            "steps": steps,
        }
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def largest(error: float) -> float:
    """Over all processes."""
    tensor = torch.tensor(error)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


@torch.no_grad()
def logits_error(policy: Policy, batches: list[PackedBatch], model: Path, vocab_size: int) -> float:
    """Largest |difference| between Megatron's logits and transformers', on the last pipeline stage."""

    def forward(data: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        return policy._passes._logits(chunk, next(data)), lambda logits, non_loss_data: logits[0]

    for chunk in policy.wrapped:
        chunk.eval()
    found = policy._passes._run(forward, batches, forward_only=True, collect_non_loss_data=True)
    if policy.parallel.context_group.size() > 1:
        return 0.0  # tokens of a sequence are spread over ranks; the log-probabilities below cover them
    reference, group = load_reference(model), policy.parallel.tensor_group
    worst = 0.0
    for batch, logits_TVp in zip(batches, found, strict=False):  # none but on the last stage
        parts = [torch.empty_like(logits_TVp) for _ in range(group.size())]
        dist.all_gather(parts, logits_TVp.contiguous(), group=group)
        logits_TV = torch.cat(parts, dim=-1)[:, :vocab_size]
        for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            expected = reference(batch.token_ids_T[None, start:stop]).logits[0]
            worst = max(worst, float((logits_TV[start:stop] - expected).abs().max()))
    return worst


def bitwise_equal(policy: Policy, model: Path) -> bool:
    """The HF tensors gathered from all ranks are those of the model's file: names, order-free, every bit."""
    expected, found = load_file(model / "model.safetensors"), dict(policy.hf_tensors())
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def log_prob_errors(policy: Policy, scored: list[PackedBatch], rollout: list[Any], model: Path) -> tuple[float, float]:
    """Largest error of the policy's and of the reweighted reference's log-probabilities of sampled tokens."""
    reference = load_reference(model)
    worst = [0.0, 0.0]
    for batch in scored:
        if batch.old_logp_T is None or batch.ref_logp_T is None:
            continue
        for index in batch.sequence_T[batch.mask_T].unique().tolist():
            sequence = rollout[index]
            chosen = (batch.sequence_T == index) & batch.mask_T
            for i, (found_T, scale) in enumerate(((batch.old_logp_T, 1.0), (batch.ref_logp_T, sequence.phi))):
                logp = torch.from_numpy(token_log_probs(reference, sequence.token_ids, scale))
                expected = logp[sequence.prompt_length - 1 :]
                found = found_T[chosen]
                if policy.parallel.context_group.size() > 1:  # this rank has some of them: match by value
                    error = (found[:, None] - expected[None]).abs().min(dim=1).values.max()
                else:
                    error = (found - expected).abs().max()
                worst[i] = max(worst[i], float(error))
    return worst[0], worst[1]


if __name__ == "__main__":
    main()
