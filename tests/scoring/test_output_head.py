"""Check values and gradients of the chunked output head: log-probability, entropy and exact KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rapo.scoring.output_head import token_scores
from tests.launch import run_distributed
from tests.scoring.output_head_worker import CASES, VARIANTS, variants

WORKER = Path(__file__).with_name("output_head_worker.py")

# case: largest error of the values, and of the gradients by hidden states and weight
TOLERANCES = {
    "float64": (1e-13, 1e-13),
    "float64, no padding": (1e-13, 1e-13),
    "float32": (1e-6, 1e-5),
    "bfloat16": (1e-6, 2**-6),  # the arithmetic is float32, each process rounds its part of the gradient
    "float64, large": (1e-13, 1e-11),  # a reverse KL of 1e4 nats, of which the gradient takes differences
    "float32, large": (1e-6, 1e-3),
    "bfloat16, large": (1e-6, 2**-6),
}
PROCESSES = (1, 2, 4)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return run_distributed(WORKER, 4) or {}


@pytest.mark.parametrize("nproc", PROCESSES)
@pytest.mark.parametrize(
    ("case", "variant"),
    [(case, name) for case in CASES for name, variant in variants(CASES[case]).items() if not variant.itself],
)
def test_values_and_gradients(results: dict[str, Any], case: str, variant: str, nproc: int) -> None:
    """Values per token, and gradients of hidden states (summed over the group) and weight, of all or some scores."""
    value, gradient = TOLERANCES[case]
    found = results[f"{case}, {variant}, {nproc}"]
    values = {"logp", "entropy"} | ({"kl"} if VARIANTS[variant].direction else set())
    assert found["errors"].keys() == values | {"hidden_gradient", "weight_gradient"}
    for name, error in found["errors"].items():
        assert error <= (value if name in values else gradient), f"{name}: {error}"
        assert found["largest"][name] > 0.5, name
    assert found["padding_gradient"] == 0.0
    narrow = case.partition(",")[0]
    wide = "float64" if narrow == "float64" else "float32"
    assert {name: dtype for name, dtype in found["dtypes"].items() if name in values} == dict.fromkeys(values, wide)
    assert found["dtypes"]["hidden_gradient"] == found["dtypes"]["weight_gradient"] == narrow


@pytest.mark.parametrize("nproc", PROCESSES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("case", CASES)
def test_a_policy_that_is_its_reference(results: dict[str, Any], case: str, direction: str, nproc: int) -> None:
    """The KL is 0, its minimum, so its gradient is 0 too."""
    errors = results[f"{case}, {direction}, itself, {nproc}"]["errors"]
    limit = 1e-12 if case.startswith("float64") else 1e-6
    assert max(errors["kl"], errors["hidden_gradient"], errors["weight_gradient"]) < limit, errors


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
def test_chunks_and_a_second_backward_pass_change_nothing(chunk_tokens: int) -> None:
    """Only the first backward pass can use the last chunk's logits."""
    hidden_TD = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    targets_T, scale_T = torch.arange(7), torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
    logp_TV = torch.log_softmax(scale_T[:, None] * hidden_TD @ weight_VD.T, -1)
    expected = torch.autograd.grad(logp_TV[range(7), targets_T].sum(), (hidden_TD, weight_VD))
    scores = token_scores(hidden_TD, weight_VD, targets_T, scale_T, vocab_size=9, chunk_tokens=chunk_tokens)
    loss = scores.logp_T.sum()
    first, second = (torch.autograd.grad(loss, (hidden_TD, weight_VD), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-13)
    assert all(map(torch.equal, first, second))
