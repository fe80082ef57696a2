"""Compare `token_scores` over groups of 1, 2 and 4 processes with the float64 definitions. Runs on 4 processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.output_head import ReferenceHead, token_scores
from tests.launch import write_result
from tests.patience import COLLECTIVE_S

NUM_TOKENS, HIDDEN = 11, 8
CHUNK = 4  # 4, 4 and 3 tokens
PADDED = 40  # rows of the weight over all processes
PADDING = 77.0  # a logit that would take nearly all probability
# phi or 1 / temperature of each token
SCALE_T = (1.0, 0.0, 0.5, 0.9, 1 / 0.7, 1.0, 0.25, 1.0, 2.0, 0.0, 0.3)
REF_SCALE_T = (0.5, 1.0, 0.0, 0.9, 1.0, 1 / 0.7, 0.1, 0.0, 2.0, 0.7, 1.0)


class Variant(NamedTuple):
    """The scores that are computed, and those that the loss uses."""

    direction: str | None = None  # of the KL
    used: tuple[str, ...] = ("logp", "entropy", "kl")
    itself: bool = False  # the reference is the policy


VARIANTS = {
    "none": Variant(),
    "none, logp alone": Variant(used=("logp",)),
    "none, entropy alone": Variant(used=("entropy",)),
    "forward": Variant("forward"),
    "forward, kl alone": Variant("forward", used=("kl",)),
    "forward, no entropy": Variant("forward", used=("logp", "kl")),
    "forward, itself": Variant("forward", used=("kl",), itself=True),
    "reverse": Variant("reverse"),
    "reverse, kl alone": Variant("reverse", used=("kl",)),
    "reverse, no logp": Variant("reverse", used=("entropy", "kl")),
    "reverse, no kl": Variant("reverse", used=("logp", "entropy")),
    "reverse, itself": Variant("reverse", used=("kl",), itself=True),
}


class Case(NamedTuple):
    dtype: torch.dtype
    vocab_size: int = 37
    size: float = 1.0  # of the logits


CASES = {
    "float64": Case(torch.float64),
    "float64, no padding": Case(torch.float64, vocab_size=PADDED),
    "float32": Case(torch.float32),
    "bfloat16": Case(torch.bfloat16),
    "float64, large": Case(torch.float64, size=1e3),
    "float32, large": Case(torch.float32, size=1e3),
    "bfloat16, large": Case(torch.bfloat16, size=1e3),
}


def variants(case: Case) -> dict[str, Variant]:
    """Return variants. Large logits have all scores in one loss: alone, a gradient may be smaller than its rounding."""
    return {name: v for name, v in VARIANTS.items() if case.size == 1 or v.itself or len(v.used) == 3}


@dataclass(frozen=True)
class Inputs:
    """An output layer with padding (T tokens, D hidden size, V vocabulary), a reference's, and a loss."""

    hidden_TD: Tensor
    weight_VD: Tensor  # padded
    reference: ReferenceHead | None  # its weight padded, too
    scale_T: Tensor
    targets_T: Tensor
    coefficients: dict[str, Tensor]  # [T] of logp, entropy and KL, where the loss has them


def main() -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    rank = dist.get_rank()
    groups = {n: [dist.new_group(list(range(i, i + n))) for i in range(0, 4, n)][rank // n] for n in (1, 2, 4)}
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        for asked, variant in variants(case).items():
            inputs = make_inputs(case, variant)
            expected = by_definition(inputs, case.vocab_size)
            for nproc, group in groups.items():
                found = ours(inputs, case.vocab_size, group)
                results[f"{name}, {asked}, {nproc}"] = {
                    "errors": {key: worst(found[key], value) for key, value in expected.items()},
                    "padding_gradient": worst(found["padding_gradient"], torch.zeros(1)),
                    "dtypes": {key: str(value.dtype).removeprefix("torch.") for key, value in found.items()},
                    "largest": {key: float(value.abs().max()) for key, value in expected.items()},
                }
            alone, without_group = (ours(inputs, case.vocab_size, group) for group in (groups[1], None))
            assert all(torch.equal(value, without_group[key]) for key, value in alone.items())
    if rank == 0:
        write_result(results)
    dist.destroy_process_group()


def make_inputs(case: Case, variant: Variant) -> Inputs:
    """Make inputs. The last hidden feature is 1, so the last weight column is a bias: padding can get a high logit."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(case.dtype, torch.float32)

    def head() -> tuple[Tensor, Tensor]:
        hidden_TD = torch.randn(NUM_TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
        hidden_TD[:, -1] = 1.0
        weight_VD = torch.randn(PADDED, HIDDEN, generator=generator, dtype=torch.float64) * case.size
        if case.size > 1 or case.dtype == torch.bfloat16:  # few bits: logits without rounding, or with the same
            hidden_TD, weight_VD = (hidden_TD * 4).round() / 4, (weight_VD / case.size * 4).round() / 4 * case.size
        weight_VD[case.vocab_size :] = 0.0
        weight_VD[case.vocab_size :, -1] = PADDING * case.size
        return hidden_TD.to(case.dtype), weight_VD.to(case.dtype)

    hidden_TD, weight_VD = head()
    scale_T, ref_scale_T = torch.tensor(SCALE_T, dtype=wide), torch.tensor(REF_SCALE_T, dtype=wide)
    reference = None
    if variant.direction:
        ref_hidden_TD, ref_weight_VD = (hidden_TD, weight_VD) if variant.itself else head()
        reference = ReferenceHead(
            hidden_TD=ref_hidden_TD,
            weight_VpD=ref_weight_VD,
            scale_T=scale_T if variant.itself else ref_scale_T,
            direction=variant.direction,
        )
    targets_T = torch.randint(case.vocab_size, (NUM_TOKENS,), generator=generator)
    targets_T[0], targets_T[1] = 0, case.vocab_size - 1
    coefficients_3T = torch.randn(3, NUM_TOKENS, generator=generator, dtype=torch.float64).to(wide)
    coefficients = dict(zip(("logp", "entropy", "kl"), coefficients_3T, strict=True))
    return Inputs(
        hidden_TD, weight_VD, reference, scale_T, targets_T, {name: coefficients[name] for name in variant.used}
    )


def ours(inputs: Inputs, vocab_size: int, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Return values, and gradients of the whole model joined from the parts of the group."""
    rank, nproc = (group.rank(), group.size()) if group else (0, 1)
    columns = PADDED // nproc
    mine = slice(rank * columns, (rank + 1) * columns)
    hidden_TD = inputs.hidden_TD.clone().requires_grad_()
    weight_VpD = inputs.weight_VD[mine].clone().requires_grad_()
    reference = inputs.reference and replace(inputs.reference, weight_VpD=inputs.reference.weight_VpD[mine])
    scores = token_scores(
        hidden_TD,
        weight_VpD,
        inputs.targets_T,
        inputs.scale_T,
        vocab_size=vocab_size,
        group=group,
        reference=reference,
        chunk_tokens=CHUNK,
    )
    values = {name: value for name, value in zip(("logp", "entropy", "kl"), scores, strict=True) if value is not None}
    loss_of(inputs, values).backward()
    assert hidden_TD.grad is not None and weight_VpD.grad is not None
    parts = [torch.empty_like(weight_VpD) for _ in range(nproc)]
    if group:
        dist.all_gather(parts, weight_VpD.grad, group=group)
        dist.all_reduce(hidden_TD.grad, group=group)
    gradient_VD = torch.cat(parts) if group else weight_VpD.grad
    return {name: value.detach() for name, value in values.items()} | {
        "hidden_gradient": hidden_TD.grad,
        "weight_gradient": gradient_VD[:vocab_size],
        "padding_gradient": gradient_VD[vocab_size:],
    }


def by_definition(inputs: Inputs, vocab_size: int) -> dict[str, Tensor]:
    """Return the same from whole distributions in float64: pi^scale / Z of the logits without padding."""
    hidden_TD = inputs.hidden_TD.to(torch.float64, copy=True).requires_grad_()
    weight_VD = inputs.weight_VD[:vocab_size].to(torch.float64, copy=True).requires_grad_()

    def log_probs(hidden: Tensor, weight: Tensor, dtype: torch.dtype, scale_T: Tensor) -> Tensor:
        logits_TV = hidden @ weight.T
        logits_TV = logits_TV + (logits_TV.to(dtype) - logits_TV).detach()  # as rounded by the output layer
        power_TV = scale_T.double()[:, None] * logits_TV.log_softmax(-1)
        return power_TV - power_TV.logsumexp(-1, keepdim=True)

    dtype, reference = inputs.hidden_TD.dtype, inputs.reference
    logp_TV = log_probs(hidden_TD, weight_VD, dtype, inputs.scale_T)
    values = {
        "logp": logp_TV.gather(1, inputs.targets_T[:, None])[:, 0],
        "entropy": -(logp_TV.exp() * logp_TV).sum(-1),
    }
    if reference:
        ref_hidden_TD, ref_weight_VD = reference.hidden_TD.double(), reference.weight_VpD[:vocab_size].double()
        ref_logp_TV = log_probs(ref_hidden_TD, ref_weight_VD, dtype, reference.scale_T)
        p_TV, q_TV = (ref_logp_TV, logp_TV) if reference.direction == "forward" else (logp_TV, ref_logp_TV)
        values["kl"] = (p_TV.exp() * (p_TV - q_TV)).sum(-1)
    loss_of(inputs, values).backward()
    assert hidden_TD.grad is not None and weight_VD.grad is not None
    gradients = {"hidden_gradient": hidden_TD.grad, "weight_gradient": weight_VD.grad}
    return {name: value.detach() for name, value in values.items()} | gradients


def loss_of(inputs: Inputs, values: dict[str, Tensor]) -> Tensor:
    return sum((c_T * values[name]).sum() for name, c_T in inputs.coefficients.items() if name in values)


def worst(found: Tensor, expected: Tensor) -> float:
    """Return the largest |difference| over all processes, relative to max(1, largest number). inf for nan."""
    if not found.numel():
        found = expected = torch.zeros(1)
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1)
    error = error.nan_to_num(nan=float("inf"))
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    return float(error)


if __name__ == "__main__":
    main()
