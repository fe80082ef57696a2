"""Training from the command line with vLLM on the same GPU, and how far engine and trainer are apart."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from megatron_rapo.config.file import load_config
from megatron_rapo.models import read_shape
from megatron_rapo.preflight.checks import check_model, check_rollout, check_world_size
from tests import short_runs
from tests.short_runs import ROOT, kill_tree, metrics, start

STEPS, TIMEOUT_S = 3, 300
COMMON = ("parallel.tensor=1", "precision.dtype=bfloat16", "rollout.kv_cache_mib=256", "run.timeout_s=1200")


class Run(NamedTuple):
    settings: tuple[str, ...]
    gap: float  # mean |engine - trainer| log-probability of a rollout's tokens that is borne, nats


CASES = {
    "bf16": Run((), 0.03),
    "fp8 training": Run(("precision.fp8=hybrid",), 0.1),
    "fp8 rollout": Run(("rollout.fp8=true",), 0.1),
    "fp8 training and rollout": Run(("precision.fp8=hybrid", "rollout.fp8=true"), 0.1),
}


@pytest.mark.parametrize("case", CASES)
def test_settings_fit_the_model_and_one_process(case: str, tmp_path: Path) -> None:
    """All that is refused without a GPU being asked."""
    config_file = tmp_path / "config.toml"
    config_file.write_text(short_runs.CONFIG.format(folder=tmp_path / "run", heldout="heldout.jsonl", steps=STEPS))
    config = load_config(config_file, (*COMMON, *CASES[case].settings))
    shape = read_shape(ROOT / config.model.path)
    check_world_size(config, 1)
    check_model(config, shape)
    check_rollout(config, shape, 1)
    assert config.precision.dtype == "bfloat16" and (config.precision.fp8 == "hybrid") == ("fp8 training" in case)
    assert CASES[case].gap <= config.precision.max_logprob_gap  # above which the run stops by itself


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Status, output and folder of each case. All run at the same time, on a GPU that they leave mostly empty."""
    folders = {case: tmp_path_factory.mktemp(case.replace(" ", "-")) for case in CASES}
    started = {
        case: start(
            folder, *chain(*(("--set", each) for each in (*COMMON, *CASES[case].settings))), steps=STEPS, nproc=1
        )
        for case, folder in folders.items()
    }
    try:
        outputs = {case: process.communicate(timeout=TIMEOUT_S)[0] for case, process in started.items()}
    finally:
        for process in started.values():
            kill_tree(process)
    return {case: (started[case].returncode, outputs[case], folders[case]) for case in CASES}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_run(runs: dict[str, Any], case: str) -> None:
    status, output, folder = runs[case]
    assert status == 0, output[-6000:]
    before, *rows = metrics(folder)
    assert 0 <= before["eval/pass@1"] <= 1 and "eval/pass@1" in rows[-1]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        gaps = row["rollout/logprob_gap_mean"], row["reshard/parity_mean"]
        assert min(gaps) > 0 and max(gaps) <= CASES[case].gap, row
        assert row["reshard/proof_s"] > 0 and row["reshard/copied_mib"] > 0
        assert ("reshard/parity_kernels" in row) == ("fp8" in case)
        if "fp8" in case:
            assert (row["reshard/parity_trainer_fp8"] > 0) == ("fp8 training" in case)
            assert (row["reshard/parity_engine_fp8"] > 0) == ("rollout" in case)
        assert row["optimizer/grad_norm"] > 0 and row["optimizer/skipped_steps"] == 0
    weights = load_file(folder / "run/hf/model.safetensors")
    first = load_file(ROOT / "examples/tiny/model/model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert any(not torch.equal(weight.float(), first[name].bfloat16().float()) for name, weight in weights.items())
