"""A checkpoint with code in it is refused by everything that reads it. The code does not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_distributed
from tests.tiny_models import save_tiny_model

WORKER = Path(__file__).with_name("hostile_worker.py")
ENTRIES = ("inspect", "verify", "convert", "reshard", "evaluate", "resume")
EVERYWHERE = {  # attack -> words of the refusal
    "metadata is code": "/.metadata: cannot be read safely (posix.mkdir is not expected in it); ",
    "code in metadata": "/.metadata: cannot be read safely (posix.mkdir is not expected in it); ",
    "metadata of nothing": "/.metadata: cannot be read safely (it is not the metadata of a checkpoint); ",
    "files outside": "/.metadata: cannot be read safely ('../step-000001/",
    "code in common": "/common.pt: cannot be read safely (Weights only load failed. ",
    "another backend": "/metadata.json: cannot be read safely (it is not {",
}
ON_RESUMING = {  # what the others do not look into
    "code in an object": "random/shard_0_1: cannot be read safely (Weights only load failed. ",
    "code in FP8 state": "not the state of an FP8 layer of Transformer Engine 2 (",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    save_tiny_model(folder / "model", tied=True, num_layers=1)
    return run_distributed(WORKER, 1, folder) or {}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_sound_one_is_read(results: dict[str, Any], entry: str) -> None:
    assert results[f"none: {entry}"] == {"said": "", "run": False}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("attack", EVERYWHERE)
def test_it_is_refused(results: dict[str, Any], attack: str, entry: str) -> None:
    found = results[f"{attack}: {entry}"]
    assert EVERYWHERE[attack] in found["said"] and "\n" not in found["said"]
    assert found["run"] is False


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("attack", ON_RESUMING)
def test_objects_are_not_run(results: dict[str, Any], attack: str, entry: str) -> None:
    found = results[f"{attack}: {entry}"]
    assert (ON_RESUMING[attack] in found["said"]) is (entry == "resume")
    assert found["run"] is False and "\n" not in found["said"]
