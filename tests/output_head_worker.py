"""Started on several processes: `log_prob_and_entropy` over all of them, on one, and by torch.log_softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.distributed import init_process_group
from megatron_rapo.mcore.output_head import log_prob_and_entropy
from megatron_rapo.reshard.layout import padded_vocab_size
from tests.launch import write_result

NUM_TOKENS = 9
PADDING = 77.0  # a logit that would take nearly all probability
# vocabulary, dtype of the logits, their size
CASES = {
    "float64": (37, torch.float64, 2.0),
    "float64, no padding": (40, torch.float64, 2.0),
    "float32": (37, torch.float32, 2.0),
    "bfloat16": (37, torch.bfloat16, 2.0),
    "float32, large": (37, torch.float32, 1e4),
    "bfloat16, large": (37, torch.bfloat16, 1e4),
}


def main() -> None:
    init_process_group(timeout_s=60.0)
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    results = {name: compare(*case, alone) for name, case in CASES.items()}
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def compare(vocab_size: int, dtype: torch.dtype, size: float, alone: dist.ProcessGroup) -> dict[str, Any]:
    """Largest errors of values and gradients, over all processes."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = (size * torch.randn(NUM_TOKENS, vocab_size, generator=generator, dtype=torch.float64)).to(dtype)
    targets_T = torch.randint(vocab_size, (NUM_TOKENS,), generator=generator)
    targets_T[0], targets_T[1] = 0, vocab_size - 1
    wide = torch.promote_types(dtype, torch.float32)
    scale_T = torch.tensor([1.0, 0.0, 0.5, 0.9, 1 / 0.7, 1.0, 0.25, 1.0, 2.0], dtype=wide)  # phi or 1 / temperature
    weights_2T = torch.randn(2, NUM_TOKENS, generator=generator, dtype=torch.float64)  # of logp and entropy in a loss

    expected = by_log_softmax(logits_TV.double(), targets_T, scale_T.double(), weights_2T)
    together = ours(logits_TV, targets_T, scale_T, weights_2T.to(wide), dist.group.WORLD)
    single = ours(logits_TV, targets_T, scale_T, weights_2T.to(wide), alone)
    names = ("logp", "entropy", "gradient")
    result: dict[str, Any] = {
        "against_log_softmax": dict(zip(names, map(worst, together, expected), strict=False)),
        "against_one_process": dict(zip(names, map(worst, together, single), strict=False)),
        "weight_gradient": max(together[4], single[4]),
        "padding_gradient": worst(together[3], torch.zeros_like(together[3])),
        "dtypes": [str(tensor.dtype) for tensor in together[:3]],
        "largest_gradient": float(expected[2].abs().max()),
        "reweighted": worst(together[0], reweighted_reference(logits_TV.double(), targets_T, scale_T.double())),
    }
    return result


def ours(
    logits_TV: Tensor, targets_T: Tensor, scale_T: Tensor, weights_2T: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """logp, entropy, gradient by the logits, gradient by the padding, gathered over `group`; error by the weight."""
    vocab_size = logits_TV.shape[1]
    columns = padded_vocab_size(vocab_size, group.size()) // group.size()
    padded_TV = torch.nn.functional.pad(logits_TV, (0, columns * group.size() - vocab_size), value=PADDING)
    logits_TVp = padded_TV[:, group.rank() * columns : (group.rank() + 1) * columns].clone().requires_grad_()
    # Hidden states are these logits and the weight is the identity, so that their gradient is the logits' own.
    weight = torch.eye(columns, dtype=logits_TV.dtype, requires_grad=True)
    logp_T, entropy_T = log_prob_and_entropy(
        logits_TVp, weight, targets_T, scale_T, vocab_size=vocab_size, group=group, chunk_tokens=4
    )
    (weights_2T[0] * logp_T + weights_2T[1] * entropy_T).sum().backward()
    assert logits_TVp.grad is not None and weight.grad is not None
    by_rule = logits_TVp.grad.double().T @ logits_TVp.detach().double()
    weight_error = float((weight.grad.double() - by_rule).abs().max() / by_rule.abs().max())
    parts = [torch.empty_like(logits_TVp.grad) for _ in range(group.size())]
    dist.all_gather(parts, logits_TVp.grad, group=group)
    gradient_TV = torch.cat(parts, dim=1)
    return logp_T.detach(), entropy_T.detach(), gradient_TV[:, :vocab_size], gradient_TV[:, vocab_size:], weight_error


def by_log_softmax(
    logits_TV: Tensor, targets_T: Tensor, scale_T: Tensor, weights_2T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and the gradient by the logits."""
    logits_TV = logits_TV.clone().requires_grad_()
    logp_TV = (scale_T[:, None] * logits_TV).log_softmax(-1)
    logp_T, entropy_T = logp_TV.gather(1, targets_T[:, None])[:, 0], -(logp_TV.exp() * logp_TV).sum(-1)
    (weights_2T[0] * logp_T + weights_2T[1] * entropy_T).sum().backward()
    return logp_T.detach(), entropy_T.detach(), logits_TV.grad


def reweighted_reference(logits_TV: Tensor, targets_T: Tensor, phi_T: Tensor) -> Tensor:
    """log of pi_ref^phi / Z, the normaliser summed over the vocabulary."""
    power_TV = logits_TV.softmax(-1) ** phi_T[:, None]
    return (power_TV / power_TV.sum(-1, keepdim=True)).gather(1, targets_T[:, None])[:, 0].log()


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest |difference| over all processes, relative to numbers above 1; infinite where it is not a number."""
    if not found.numel():
        found, expected = torch.zeros(1), torch.zeros(1)
    error = ((found.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)).max()
    error = error.nan_to_num(nan=float("inf"))
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    return float(error)


if __name__ == "__main__":
    main()
