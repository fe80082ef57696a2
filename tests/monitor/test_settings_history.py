"""The settings of a run by step: kept, and dropped for lost steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_rapo.config import Config
from megatron_rapo.errors import InputError
from megatron_rapo.monitor.settings_history import changes, read_history, record_settings
from megatron_rapo.runtime.run_folder import RunFolder
from tests.runs import tiny_config


def config(timeout_s: float, **sections: dict[str, object]) -> Config:
    return tiny_config(Path("model"), Path("run"), run={"timeout_s": timeout_s}, **sections)


def test_what_changed_at_which_step(tmp_path: Path) -> None:
    record_settings(tmp_path, config(100.0), step=0)
    record_settings(tmp_path, config(100.0), step=2)  # nothing is new
    record_settings(tmp_path, config(200.0), step=4)
    record_settings(tmp_path, config(300.0), step=6)
    record_settings(tmp_path, config(400.0, evaluation={"data": "held.jsonl"}), step=5)  # step 6 was lost
    history = read_history(tmp_path)
    assert [(row["first_step"], row["settings"]["run"]["timeout_s"]) for row in history] == [
        *((1, 100.0), (5, 200.0), (6, 400.0))
    ]
    assert json.loads(RunFolder(tmp_path).settings.read_text()) == history[-1]["settings"]
    found = changes(history)
    assert found[0] == {"step": 5, "name": "run.timeout_s", "before": 100.0, "after": 200.0}
    assert {"step": 6, "name": "evaluation.data", "before": None, "after": "held.jsonl"} in found
    record_settings(tmp_path, config(500.0), step=0)
    assert [row["first_step"] for row in read_history(tmp_path)] == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "settings_history.jsonl"}


def test_a_run_of_a_version_without_a_history(tmp_path: Path) -> None:
    RunFolder(tmp_path).settings.write_text(config(100.0).to_json())
    assert read_history(tmp_path) == []
    record_settings(tmp_path, config(200.0), step=3)
    assert changes(read_history(tmp_path)) == [{"step": 4, "name": "run.timeout_s", "before": 100.0, "after": 200.0}]


@pytest.mark.parametrize(
    "line", ["[", "{}", "[1]", '{"first_step": "x", "settings": {}}', '{"first_step": 1, "settings": 1}']
)
def test_a_damaged_history(tmp_path: Path, line: str) -> None:
    RunFolder(tmp_path).settings_history.write_text(line + "\n")
    with pytest.raises(
        InputError, match=r"settings_history.jsonl:1: not a line of settings \(.*\); remove the file\.$"
    ):
        read_history(tmp_path)
