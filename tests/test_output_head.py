"""Log-probability, entropy and exact KL of the chunked output head: values and gradients are the definitions'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.output_head_worker import CASES, VARIANTS, variants

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
    """All in one loss, or some: of each token, of the hidden states (summed over the group) and of the weight."""
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
    """Has a KL of 0, at its minimum."""
    errors = results[f"{case}, {direction}, itself, {nproc}"]["errors"]
    limit = 1e-12 if case.startswith("float64") else 1e-6
    assert max(errors["kl"], errors["hidden_gradient"], errors["weight_gradient"]) < limit, errors
