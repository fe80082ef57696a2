from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServerAccumulator
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util import tensor_util

from megatron_rapo.monitor import CHARTS, HISTOGRAMS, SCALARS, Recorder, Sample
from megatron_rapo.monitor.tensorboard_writer import tag

SAMPLE = Sample(prompt="1+1=", completion="The sum is \\boxed{2}.", answer="2", reward=1.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag(name))]


def test_the_same_numbers_are_in_both_files(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(1, {"reward/mean": 0.25, "seconds/rollout": 3.5})
        recorder.log(2, {"reward/mean": 0.75, "optimizer/lr": 1e-6})
    assert rows(tmp_path) == [
        {"step": 1, "reward/mean": 0.25, "seconds/rollout": 3.5},
        {"step": 2, "reward/mean": 0.75, "optimizer/lr": 1e-6},
    ]
    assert scalars(tmp_path, "reward/mean") == [(1, 0.25), (2, 0.75)]
    assert scalars(tmp_path, "seconds/rollout") == [(1, 3.5)]
    assert scalars(tmp_path, "optimizer/lr") == [(2, float(np.float32(1e-6)))]
    assert sorted(events(tmp_path).Tags()["scalars"]) == ["01_reward/mean", "05_optimizer/lr", "10_seconds/rollout"]


def test_tensorboard_says_what_a_scalar_means(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(1, {"policy/entropy": 0.5})
    metadata = events(tmp_path).SummaryMetadata(tag("policy/entropy"))
    assert metadata.summary_description == SCALARS["policy/entropy"]
    assert metadata.plugin_data.plugin_name == "scalars"
    assert metadata.data_class == DATA_CLASS_SCALAR


def test_each_step_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writers=["tensorboard"])
    recorder.log(1, {"reward/mean": 0.25})
    assert rows(tmp_path) == [{"step": 1, "reward/mean": 0.25}]
    assert scalars(tmp_path, "reward/mean") == [(1, 0.25)]
    recorder.close()
    recorder.close()


def test_without_tensorboard_there_are_no_event_files(tmp_path: Path) -> None:
    with Recorder(tmp_path / "new" / "folder", writers=[]) as recorder:
        recorder.log(1, {"reward/mean": 0.25}, [SAMPLE])
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["metrics.jsonl"]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    values = {"policy/kl": math.nan, "optimizer/grad_norm": math.inf, "policy/loss": -math.inf, "reward/mean": 0.0}
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(1, values)
    assert rows(tmp_path) == [
        {"step": 1, "policy/kl": None, "optimizer/grad_norm": None, "policy/loss": None, "reward/mean": 0.0}
    ]
    assert scalars(tmp_path, "optimizer/grad_norm") == [(1, math.inf)]
    assert math.isnan(scalars(tmp_path, "policy/kl")[0][1])


def test_an_unknown_scalar_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        with pytest.raises(ValueError, match=r"scalar reward/meen: no such scalar; did you mean reward/mean\?"):
            recorder.log(1, {"reward/mean": 0.5, "reward/meen": 0.5})
        recorder.log(1, {"eval/pass@16/before": 0.5})
    assert rows(tmp_path) == [{"step": 1, "eval/pass@16/before": 0.5}]
    assert events(tmp_path).Tags()["scalars"] == ["02_eval/pass@16/before"]


def test_a_second_call_for_a_step_adds_to_its_line(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(1, {"reward/mean": 0.5})
        recorder.log(2, {"reward/mean": 0.75})
        recorder.log(2, {"eval/pass@1/after": 0.25})
        recorder.log(2, {})
        with pytest.raises(ValueError, match="step 2: has reward/mean already"):
            recorder.log(2, {"reward/mean": 0.8})
        with pytest.raises(ValueError, match="step 1: step 2 is recorded already"):
            recorder.log(1, {"reward/pass_rate": 0.8})
        recorder.log(3, {"reward/mean": 1.0})
    assert rows(tmp_path) == [
        {"step": 1, "reward/mean": 0.5},
        {"step": 2, "reward/mean": 0.75, "eval/pass@1/after": 0.25},
        {"step": 3, "reward/mean": 1.0},
    ]
    assert scalars(tmp_path, "reward/mean") == [(1, 0.5), (2, 0.75), (3, 1.0)]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        for step in (1, 2, 3, 4):
            recorder.log(step, {"reward/mean": step / 8})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')  # killed while it wrote
    with Recorder(tmp_path, writers=["tensorboard"], resume_step=2) as recorder:
        assert rows(tmp_path) == [{"step": 1, "reward/mean": 0.125}, {"step": 2, "reward/mean": 0.25}]
        with pytest.raises(ValueError, match="step 1: step 2 is recorded already"):
            recorder.log(1, {"reward/mean": 0.0})
        recorder.log(3, {"reward/mean": 0.75})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert rows(tmp_path)[-1] == {"step": 3, "reward/mean": 0.75}
    assert scalars(tmp_path, "reward/mean") == [(1, 0.125), (2, 0.25), (3, 0.75)]
    server = ServerAccumulator(str(tmp_path / "tensorboard"))  # another reader, with rules of its own for restarts
    server.Reload()
    assert [event.step for event in server.Tensors(tag("reward/mean"))] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_resuming_a_folder_without_metrics_starts_them(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=[], resume_step=7) as recorder:
        recorder.log(8, {"reward/mean": 0.5})
    assert rows(tmp_path) == [{"step": 8, "reward/mean": 0.5}]


def test_another_runs_metrics_are_not_added_to(tmp_path: Path) -> None:
    with Recorder(tmp_path, writers=[]) as recorder:
        recorder.log(1, {"reward/mean": 0.5})
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl: holds the metrics of another run; resume"):
        Recorder(tmp_path, writers=[])
    assert rows(tmp_path) == [{"step": 1, "reward/mean": 0.5}]


def test_a_broken_line_within_the_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of metrics"):
        Recorder(tmp_path, writers=[], resume_step=3)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_samples_are_text_in_tensorboard(tmp_path: Path) -> None:
    wrong = Sample(prompt="2+2=", completion="5", answer="4", reward=0.0)
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(3, {}, [SAMPLE, wrong])
    accumulator = events(tmp_path)
    assert sorted(accumulator.Tags()["tensors"]) == ["custom_scalars__config__", "samples/0", "samples/1"]
    event = accumulator.Tensors("samples/0")[0]
    assert event.step == 3
    assert event.tensor_proto.string_val[0].decode() == (
        "**reward 1**\n\n**prompt**\n\n    1+1=\n\n**completion**\n\n    The sum is \\boxed{2}.\n\n**answer**\n\n    2"
    )
    assert accumulator.SummaryMetadata("samples/0").plugin_data.plugin_name == "text"


def test_long_lines_of_a_sample_are_wrapped() -> None:
    line = "word " * 30 + "x" * 120
    text = Sample(prompt=line, completion="a\n\n  b", answer="", reward=0.5).markdown()
    assert max(map(len, text.splitlines())) == 104
    assert "    a\n    \n      b\n" in text
    assert text.split("**prompt**\n\n")[1].split("\n\n**completion")[0].replace("\n", "").replace("    ", "") == line


def test_tensorboard_shows_distributions(tmp_path: Path) -> None:
    values = [0.0, 0.0, 0.1, 3.0]
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(3, {}, histograms={"histogram/reward": values, "histogram/log_rho": []})
        with pytest.raises(ValueError, match="histogram reward: no such histogram; declare it in"):
            recorder.log(4, {}, histograms={"reward": values})
    accumulator = events(tmp_path)
    assert "histogram/log_rho" not in accumulator.Tags()["tensors"]
    [event] = accumulator.Tensors("histogram/reward")
    bins = tensor_util.make_ndarray(event.tensor_proto)
    assert event.step == 3 and bins.shape == (30, 3)
    assert (bins[0, 0], bins[-1, 1]) == (0.0, 3.0) and list(bins[[0, 1, 29], 2]) == [2, 1, 1] and bins[:, 2].sum() == 4
    metadata = accumulator.SummaryMetadata("histogram/reward")
    assert metadata.plugin_data.plugin_name == "histograms"
    assert metadata.summary_description == HISTOGRAMS["histogram/reward"]


def test_tensorboard_groups_the_curves(tmp_path: Path) -> None:
    """On the custom-scalars page, each chart has scalars, and all of them are declared."""
    with Recorder(tmp_path, writers=["tensorboard"]) as recorder:
        recorder.log(1, {"reward/mean": 0.5})
    [event] = events(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert {c.title: [chart.title for chart in c.chart] for c in layout.category} == {
        section: list(charts) for section, charts in CHARTS.items()
    }
    known = [tag(name) for name in (*SCALARS, "seconds/rollout", "eval/pass@1", "eval/maj@4", "reward/term/length")]
    assert sorted(known)[0].startswith("01_reward/") and "07_estimator/importance_capped" in known
    for chart in (chart for category in layout.category for chart in category.chart):
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, name) for name in known), pattern
    time = next(chart for c in layout.category for chart in c.chart if chart.title == "Seconds by phase")
    assert list(time.multiline.tag) == ["^10_seconds/.+$"]


def test_markup_in_a_completion_stays_literal() -> None:
    completion = "```\n<script>alert(1)</script>\n\n# big\r\n~~~\n| a | b |\n[x](javascript:y)\x1b[31m\x00\ud800 end"
    html = markdown.markdown(
        Sample(prompt="", completion=completion, answer="", reward=0.5).markdown(),
        extensions=["markdown.extensions.tables", "markdown.extensions.fenced_code"],  # as TensorBoard has them
    )
    assert "<script" not in html and "<h1" not in html and "<table" not in html and "href" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n\n# big\N{REPLACEMENT CHARACTER}\n~~~\n" in html
    assert html.count("<strong>") == 4
    assert "\x1b" not in html and "\x00" not in html
    html.encode()
