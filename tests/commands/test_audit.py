"""The `audit` command as users run it."""

import json
import re
from pathlib import Path

import pytest

from megatron_rapo.algo import DIVERGENCES
from megatron_rapo.cli import main

ROOT = Path(__file__).parents[2]
BASELINES = sorted((ROOT / "examples" / "baselines").glob("*.toml"))


def test_says_what_a_configuration_optimises(capsys):
    assert main(["audit", str(ROOT / "examples/quickstart.toml")]) == 0
    out = capsys.readouterr().out
    assert "forward_kl: its gradient is that of KL(pihat_ref || pi), the forward KL" in out
    assert "terms of the objective, on-policy" in out and "terms of the objective, off-policy" in out
    assert re.search(r"divergence +0\.1 ", out)  # the coefficient
    assert "entropy" not in out  # beta = 0


def test_ends_with_1_where_name_and_gradient_disagree(capsys):
    cap = ["--set", "algorithm.log_rho_cap=0.3"]
    assert main(["audit", str(ROOT / "examples/quickstart.toml"), *cap]) == 1
    assert "forward_kl is NOT what it is called" in capsys.readouterr().out


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_baselines_are_what_their_files_say(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["audit", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    divergence, named = {
        "grpo_k3": ("forward_kl_k3", "forward_kl"),
        "grpo_no_kl": ("none", None),
        "grpo_reverse_kl": ("reverse_kl", "reverse_kl"),
        "rapo_exact": ("forward_kl_exact", "forward_kl"),
        "rapo_paper": ("rapo_paper", "half_squared_log_rho"),
    }[path.stem]
    assert (found["divergence"], found["named"], found["agrees"]) == (divergence, named, True)
    assert found["verdict"].startswith(divergence)


def test_the_documentations_table_is_what_is_measured(capsys, tmp_path):
    picture = tmp_path / "all.png"
    assert main(["audit", "--all", "--markdown", "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 2 + len(DIVERGENCES)
    assert table in (ROOT / "docs" / "estimators.md").read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name either a CONFIG.toml or"),
        (["run.toml", "--all"], "name either a CONFIG.toml or"),
        (["run.toml", "--markdown"], "--markdown shows all divergences side by side"),
        (["run.toml", "--plot", "x.png"], "--plot shows all divergences side by side"),
        (["missing.toml"], "missing.toml: no such configuration file"),
    ],
)
def test_refusals(arguments, reason, capsys):
    assert main(["audit", *arguments]) == 2
    assert reason in capsys.readouterr().err
