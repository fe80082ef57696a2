"""Which data of runs are read, how many, and how they get into the file. test_page.py tests the page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_rapo import cli
from megatron_rapo.commands.report import Options, page_data
from megatron_rapo.errors import InputError
from megatron_rapo.monitor import Recorder
from megatron_rapo.report.curves import MOST_POINTS, curves, stacks
from megatron_rapo.report.evaluations import read_evaluation
from megatron_rapo.report.page import SCRIPTS, embedded, render
from megatron_rapo.report.rollouts import HEAD_TOKENS, TAIL_TOKENS, read_completions, spread
from megatron_rapo.report.runs import differences, read_runs
from tests.report.conftest import COMPLETION, HOSTILE, write_run

OPTIONS = Options(output=None, evaluations=[], rollouts_mib=8.0)


def test_a_short_curve_is_whole(runs: list[Path]) -> None:
    [run] = read_runs(runs[1:])
    assert run.name == "two"
    assert run.curves["reward/mean"] == {"steps": list(range(1, 11)), "values": [step / 20 for step in range(1, 11)]}
    assert run.curves["policy/kl"]["values"][3:6] == [0.16, None, 0.36]
    assert run.curves["eval/pass@1"] == {"steps": [0], "values": [0.25]}


def test_a_long_curve_is_its_means_and_keeps_its_spikes() -> None:
    values = np.sin(np.arange(100_000) / 5000)
    values[54_321], values[77_777] = 50.0, -50.0
    rows = [{"step": step, "policy/kl": value} for step, value in enumerate(values.tolist())]
    rows[5]["policy/kl"] = None
    found = curves(rows)["policy/kl"]
    assert {len(column) for column in found.values()} == {MOST_POINTS}
    assert (max(found["high"]), min(found["low"])) == (50.0, -50.0)
    means = values.reshape(MOST_POINTS, -1).mean(axis=1)
    assert found["values"][1:] == pytest.approx(means[1:], abs=1e-5) and found["steps"][-1] == 99_999
    assert found["values"][0] == pytest.approx(np.delete(values[:250], 5).mean(), abs=1e-5)
    assert len(json.dumps(found)) < 30_000
    lost = curves([{"step": step, "policy/kl": None} for step in range(1000)])["policy/kl"]
    assert set(lost["values"]) == set(lost["low"]) == set(lost["high"]) == {None}


def test_what_is_stacked_is_of_the_same_steps_and_adds_up() -> None:
    """In a long run, means of a phase that only some steps have are over all steps."""
    rows: list[dict[str, float]] = [{"step": 0, "eval/pass@1": 0.5}]
    for step in range(1, 1201):
        rows.append(
            {"step": step, "seconds/train": 2.0, "seconds/step": 3.0}
            | ({"seconds/parity": 3.0} if step % 3 == 0 else {})
        )
    found = stacks(rows, ["seconds/"])
    assert found["values"].keys() == {"seconds/train", "seconds/parity"} and len(found["steps"]) == MOST_POINTS
    assert (found["steps"][0], found["steps"][-1]) == (3, 1200)
    assert set(found["values"]["seconds/train"]) == {2.0} and set(found["values"]["seconds/parity"]) == {1.0}
    assert stacks(rows, ["reward/wrong"]) == {"steps": [], "values": {}}


def test_items_are_spread_evenly_with_both_ends() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9] and spread(range(3), 5) == [0, 1, 2]
    assert spread(range(10), 1) == [9] and spread(range(10), 0) == []


def test_as_many_completions_as_fit_from_all_of_the_run(runs: list[Path]) -> None:
    every, recorded = read_completions(runs[0], most_bytes=2**20)
    assert len(every) == recorded == 8 and [c["step"] for c in every] == [10] * 4 + [20] * 4
    size = len(json.dumps(every[0]))
    some, recorded = read_completions(runs[0], most_bytes=5 * size)
    assert recorded == 8 and 3 <= len(some) < 5 and some[0] == every[0] and some[-1] == every[-1]
    assert read_completions(runs[0], most_bytes=10) == ([], 8)
    assert read_completions(runs[0].parent, most_bytes=10) == ([], 0)


def test_of_a_long_completion_the_middle_is_left_out(tmp_path: Path) -> None:
    long = 10_000
    numbers = [-i / 3 for i in range(long)]
    completion = replace(
        COMPLETION,
        tokens=[str(i) for i in range(long)],
        engine_logp=numbers,
        trainer_logp=numbers,
        reference_logp=None,
    )
    with Recorder(tmp_path) as recorder:
        recorder.rollouts(1, [completion])
    [[found], _] = read_completions(tmp_path, most_bytes=2**20)
    assert found["cut"] == long - HEAD_TOKENS - TAIL_TOKENS and found["cut_at"] == HEAD_TOKENS
    assert found["tokens"][HEAD_TOKENS - 1 : HEAD_TOKENS + 1] == [str(HEAD_TOKENS - 1), str(long - TAIL_TOKENS)]
    assert len(found["tokens"]) == len(found["trainer_logp"]) == HEAD_TOKENS + TAIL_TOKENS
    assert found["reference_logp"] is None and found["engine_logp"][1] == -0.33333


def test_pass_at_k_is_drawn_at_every_power_of_two_with_intervals(base: Path) -> None:
    found = read_evaluation(base)
    assert (found["model"], found["problems"], found["samples"], found["k"]) == ("models/base", 3, 8, [1, 2, 4, 8])
    assert found["pass_at"][0] == pytest.approx((4 + 2 + 1) / 24, abs=1e-5) and found["pass_at"][-1] == 1.0
    assert np.all(np.diff([found["low"], found["pass_at"], found["high"]], axis=0) >= 0)
    assert found["low"][0] < found["pass_at"][0] < found["high"][0]


def test_settings_that_differ_are_shown(runs: list[Path]) -> None:
    both, one = read_runs(runs), read_runs(runs[:1])
    assert [d["name"] for d in differences(both)] == ["data.train", "optimizer.lr", "run.folder", "run.steps"]
    assert differences(both)[1]["values"] == ["0.001", "0.0001"]
    of_one = {d["name"]: d["values"] for d in differences(one)}
    assert of_one["optimizer.lr"] == ["0.001", "5e-07"] and of_one["data.train"][1] == "–"
    assert "optimizer.beta1" not in of_one and "monitor.writers" not in of_one


def test_settings_that_were_changed_on_the_way_are_shown(runs: list[Path]) -> None:
    [run] = read_runs(runs[:1])
    assert run.changes == [{"step": 3, "name": "run.timeout_s", "before": "600.0", "after": "1200.0"}]
    assert run.settings["run.timeout_s"] == 1200.0


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "run", steps=1, lr=1e-3) for name in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_a_run_that_is_under_way_can_be_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3, lr=1e-3)
    for name in ("summary.json", "machine.json", "config.json", "settings_history.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "evaluations")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    data = page_data(read_runs([folder]), OPTIONS)
    assert data["runs"][0]["curves"]["reward/mean"]["steps"] == [1, 2, 3]
    assert data["runs"][0]["completions"] == [] and data["evaluations"] == [] and data["differences"] == []


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_the_data(text: str) -> None:
    written = embedded({"text": text, text: 1})
    assert not set("<>&") & set(written) and written.isascii() and written.isprintable()
    assert json.loads(written) == {"text": text, text: 1}


def test_the_page_allows_its_own_script_and_nothing_else() -> None:
    content = render("<b>&\"'", {"text": "{{SCRIPT}}{{STYLE}}</script>"})
    assert "<title>&lt;b&gt;&amp;&quot;&#x27;</title>" in content
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", content, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' id="data" type="application/json"', ""]
    assert json.loads(scripts[0][1]) == {"text": "{{SCRIPT}}{{STYLE}}</script>"}
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', content)
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in html.unescape(policy)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', content) and "@import" not in content and "url(" not in content


def test_no_script_makes_markup_of_text() -> None:
    folder = Path(cli.__file__).parent / "report"
    assert sorted(path.name for path in folder.glob("*.js")) == sorted(SCRIPTS)
    for name in SCRIPTS:
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert forbidden not in (folder / name).read_text(), (name, forbidden)


REFUSALS = {
    "no run": (["{runs}"], "{runs}: has no metrics.jsonl, so it is no run folder; name one that `train` wrote."),
    "twice": (["{runs}/one", "{runs}/one"], "report {runs}/one {runs}/one: a run is named twice; name each once."),
    "no scores": (
        ["{runs}/one", "--evaluation", "{runs}/none.json"],
        "{runs}/none.json: cannot be read (No such file or directory); name a .json file of scores that "
        "`evaluate --output` wrote beside its samples.",
    ),
    "other scores": (
        ["{runs}/one", "--evaluation", "{runs}/one/config.json"],
        "{runs}/one/config.json: format=None: not 'megatron_rapo scores 2'; name a .json file of scores that "
        "`evaluate --output` wrote beside its samples.",
    ),
    "no place": (
        ["{runs}/one", "--output", "{runs}/no/where.html"],
        "--output {runs}/no/where.html: cannot be written (No such file or directory); name another file.",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = REFUSALS[case]
    folder = str(runs[0].parent)
    assert cli.main(["report", *(argument.format(runs=folder) for argument in arguments)]) == 2
    assert capsys.readouterr().err == f"error: {said.format(runs=folder)}\n"


def test_a_run_without_a_step_and_a_file_that_is_damaged(tmp_path: Path, runs: list[Path]) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"its metrics.jsonl is empty, because no step has ended yet; wait for one"):
        read_runs([tmp_path])
    folder = shutil.copytree(runs[0], tmp_path / "run")
    path = folder / "rollouts/step-000020.jsonl.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"step-000020.jsonl.gz: cannot be read \(.*\); remove it"):
        page_data(read_runs([folder]), OPTIONS)


def test_the_command_says_where_the_report_is(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(runs[1])]) == 0
    path = runs[1] / "report.html"
    size = path.stat().st_size
    assert capsys.readouterr().out == f"{path}: 0.1 MiB; open it in a browser, it needs no network\n"
    assert size < 2**18 and not path.with_name("report.html.partial").exists()
    path.unlink()
