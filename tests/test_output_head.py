from pathlib import Path

import pytest

from tests.launch import run_distributed

WORKER = Path(__file__).with_name("output_head_worker.py")

# case: largest error of the log-probability and the entropy, and of the gradient
TOLERANCES = {
    "float64": (1e-12, 1e-12),
    "float64, no padding": (1e-12, 1e-12),
    "float32": (1e-5, 1e-5),
    "bfloat16": (1e-5, 2**-8),  # the arithmetic is float32, the gradient is rounded
    "float32, large": (1e-5, 1e-4),  # of logits of 1e4, relative; the gradient is that of a product with them
    "bfloat16, large": (1e-5, 2**-8),
}


@pytest.fixture(scope="module", params=[2, 4])
def found(request):
    return run_distributed(WORKER, request.param)


def test_all_cases_ran(found):
    assert found.keys() == TOLERANCES.keys()
    assert all(case["largest_gradient"] > 0.5 for case in found.values())


@pytest.mark.parametrize("other", ["against_log_softmax", "against_one_process"])
@pytest.mark.parametrize("case", TOLERANCES)
def test_values_and_gradients(found, case, other):
    value, gradient = TOLERANCES[case]
    errors = found[case][other]
    assert errors.keys() == {"logp", "entropy", "gradient"}
    assert errors["logp"] <= value and errors["entropy"] <= value and errors["gradient"] <= gradient, errors


@pytest.mark.parametrize("case", TOLERANCES)
def test_gradient_of_the_weight(found, case):
    """d weight = (d logits)^T hidden over all chunks, relative to its largest element."""
    assert (
        found[case]["weight_gradient"] <= {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-7}[case.partition(",")[0]]
    )


@pytest.mark.parametrize("case", TOLERANCES)
def test_padding_has_no_gradient(found, case):
    assert found[case]["padding_gradient"] == 0.0


@pytest.mark.parametrize("case", ["float64", "float64, no padding"])
def test_a_scale_of_phi_is_the_reweighted_reference(found, case):
    """softmax(phi z) = pi_ref^phi / Z, for phi = 0 (uniform) too."""
    assert found[case]["reweighted"] <= 1e-12


@pytest.mark.parametrize("case", TOLERANCES)
def test_dtypes(found, case):
    name = case.partition(",")[0]
    wide = "torch.float64" if name == "float64" else "torch.float32"
    assert found[case]["dtypes"] == [wide, wide, f"torch.{name}"]
