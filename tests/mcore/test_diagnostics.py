"""Check measurements under every layout: quantiles of the log-ratio, norms and shares of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.mcore.layouts import ALL, LAYOUTS, MEASURED, MEASURED_LAYOUTS, SAMPLED, one_process

BIN = 0.01  # nats
SHARES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


def quantiles(measured: dict[str, Any]) -> dict[str, float]:
    """Return the scalars by numpy: the smallest log-ratio that has the share of all at or below it."""
    log_rho, reward, *_ = np.array(measured["tokens"]).T
    splits = {"": reward > -1, "/low_reward": reward < 0.5, "/high_reward": reward >= 0.5}
    return {
        f"estimator/log_rho_{name}{split}": float(np.quantile(log_rho[chosen], share, method="inverted_cdf"))
        for split, chosen in splits.items()
        if chosen.any()
        for name, share in SHARES.items()
    }


def of_log_rho(measured: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured["scalars"].items() if "log_rho" in name}


@pytest.mark.parametrize("layout", ALL)
def test_quantiles_equal_numpys(found: dict[str, Any], layout: str) -> None:
    measured = found[layout]["diagnostics"]
    expected = quantiles(measured)
    assert len(expected) == 9 and expected["estimator/log_rho_p99"] - expected["estimator/log_rho_p01"] > 10 * BIN
    split = [
        [expected[f"estimator/log_rho_{q}/{which}_reward"] for q in ("p01", "p50", "p99")] for which in ("low", "high")
    ]
    assert split[0] != pytest.approx(split[1], abs=2 * BIN)
    assert of_log_rho(measured) == pytest.approx(expected, abs=BIN)
    assert len(measured["tokens"]) == len(found["TP1 tied"]["diagnostics"]["tokens"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same(found: dict[str, Any], layout: str) -> None:
    expected, scalars = (found[name]["diagnostics"]["scalars"] for name in (one_process(layout), layout))
    assert scalars == pytest.approx(expected, abs=BIN)
    for name in ("rollout/logprob_gap_mean", "rollout/logprob_gap_max"):
        assert scalars[name] == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_of_earlier_weights_have_a_gap_of_their_own(found: dict[str, Any], layout: str) -> None:
    """Half of every third completion is stale."""
    measured = found[layout]["diagnostics"]
    _, _, gap, stale = np.array(measured["tokens"]).T
    fresh = gap[stale == 0]
    assert 20 < stale.sum() < len(stale) / 2
    assert {name: value for name, value in measured["scalars"].items() if "gap" in name} == pytest.approx(
        {
            "rollout/logprob_gap_mean": fresh.mean(),
            "rollout/logprob_gap_max": fresh.max(),
            "rollout/stale_logprob_gap": gap[stale == 1].mean(),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("layout", ALL)
def test_a_split_without_sequences_is_left_out(found: dict[str, Any], layout: str) -> None:
    measured, whole = found[layout]["no_sequence_earned_enough"], of_log_rho(found[layout]["diagnostics"])
    scalars = of_log_rho(measured)
    assert scalars.keys() == {name for name in whole if not name.endswith("/high_reward")}
    for name in SHARES:
        expected = whole[f"estimator/log_rho_{name}"]
        assert scalars[f"estimator/log_rho_{name}"] == scalars[f"estimator/log_rho_{name}/low_reward"] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_beyond_the_histogram_count_at_its_ends(found: dict[str, Any], layout: str) -> None:
    measured = found[layout]["beyond_the_histogram"]
    expected = quantiles(measured)
    assert expected["estimator/log_rho_p01"] < -25 and expected["estimator/log_rho_p99"] > 25
    assert of_log_rho(measured) == pytest.approx({n: np.clip(v, -20, 20) for n, v in expected.items()}, abs=BIN)


@pytest.mark.parametrize("layout", MEASURED_LAYOUTS)
def test_the_gradients_norm_is_that_of_the_step(found: dict[str, Any], layout: str) -> None:
    measured = found[layout][MEASURED]
    assert measured["norms_before_steps"] == [step["grad_norm"] for step in measured["steps"]]


@pytest.mark.parametrize("layout", MEASURED_LAYOUTS)
def test_old_log_probs_are_the_training_passes_and_measuring_a_gradient_leaves_nothing_behind(
    found: dict[str, Any], layout: str
) -> None:
    """Three steps are the same to the bit with and without a scoring pass and measurements between them."""
    assert found[layout][MEASURED]["steps"] == found[layout][SAMPLED]["steps"]
    assert found[layout][MEASURED]["weights"] == found[layout][SAMPLED]["weights"]


@pytest.mark.parametrize("layout", MEASURED_LAYOUTS)
def test_the_gradient_is_that_of_its_parts(found: dict[str, Any], layout: str) -> None:
    norms, expected = (found[name][MEASURED]["norms"] for name in (layout, one_process(layout)))
    bf16 = layout not in LAYOUTS
    assert norms == pytest.approx(expected, rel=0.05 if bf16 else 1e-5)
    assert norms["divergence"] > 0.01 and norms["nothing"] == 0.0
    assert norms["divergence, alpha doubled"] == pytest.approx(2 * norms["divergence"], rel=1e-2 if bf16 else 1e-5)
    assert norms["rest"] - norms["divergence"] < norms["whole"] < norms["rest"] + norms["divergence"]


@pytest.mark.parametrize("layout", MEASURED_LAYOUTS)
def test_shares_of_the_divergence(found: dict[str, Any], layout: str) -> None:
    """Shares are of each rank's first micro-batches, in all and by reward; none if they have no such sequence."""
    measured = found[layout][MEASURED]
    for split, norms in measured["norms_of_shares"].items():
        share = measured["shares"].get(f"estimator/kl_gradient_share{split}", 0.0)
        assert share * (norms["divergence"] + norms["rest"]) == pytest.approx(norms["divergence"], rel=1e-6)
    assert 0 < measured["shares"]["estimator/kl_gradient_share"] < 1
    assert 0 < measured["shares"]["estimator/kl_gradient_share/high_reward"] < 1
    assert ("estimator/kl_gradient_share/low_reward" in measured["shares"]) == (layout != "CP2 untied")
