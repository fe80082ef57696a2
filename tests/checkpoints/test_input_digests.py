"""A resumed run must read the same content: model files and problems. In a world of one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_rapo.checkpoints.folders import INPUTS, CheckpointError
from megatron_rapo.checkpoints.input_digests import InputReader, Inputs, check_same_inputs, problem_digests
from megatron_rapo.config import ConfigError
from megatron_rapo.data import load_problems
from megatron_rapo.types import Problem
from tests.tiny_models import save_tiny_model

ROWS = [{"problem": f"{i}+{i}=", "answer": str(2 * i), "level": i} for i in range(20)]


@pytest.fixture(autouse=True)
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model", tied=True)


def problems(path: Path, rows: Sequence[dict[str, object]]) -> list[Problem]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(path)


@pytest.fixture
def checkpoint(tmp_path: Path, model: Path) -> Path:
    """Make a checkpoint of a run on ROWS that was evaluated on the first three of them."""
    folder = tmp_path / "run/checkpoints/step-000004"
    folder.mkdir(parents=True)
    given = problems(tmp_path / "train.jsonl", ROWS)
    (folder / INPUTS).write_text(InputReader(model, given, given[:3]).inputs().to_json())
    return folder


def resumed(
    checkpoint: Path, model: Path, given: Sequence[Problem], heldout: Sequence[Problem] | None = None
) -> list[str]:
    """Return the warnings of a run that resumes with these problems."""
    heldout = given[:3] if heldout is None else heldout
    present = InputReader(model, given, heldout).inputs()
    return check_same_inputs(checkpoint, present, model=model, data=Path("data.jsonl"), problems=given)


def test_the_same_elsewhere(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    """Other file names, from which the ids of problems are made, and another order of columns change nothing."""
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("which nothing reads")
    rows = [dict(reversed(row.items())) for row in ROWS]
    assert resumed(checkpoint, copy, problems(tmp_path / "moved.jsonl", rows)) == []


def test_every_file_of_the_model_counts(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    saved = Inputs.read(checkpoint)
    assert saved and {"config.json", "model.safetensors", "tokenizer.json"} <= saved.model.keys()
    copy = shutil.copytree(model, tmp_path / "copy")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    (copy / "tokenizer_config.json").unlink()
    (copy / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError) as refused:
        resumed(checkpoint, copy, problems(tmp_path / "train.jsonl", ROWS))
    assert str(refused.value) == (
        f"model.path={copy}: added_tokens.json was not there when the run began, model.safetensors differs from "
        "the file that the run began with, tokenizer_config.json is missing; give the model that the run began with "
        f"(its files except the weights are also in {checkpoint}/hf), or start a new run."
    )


SWAPPED = [*ROWS[:16], ROWS[17], ROWS[16], *ROWS[18:]]
OTHERS = {
    "swapped": (
        SWAPPED,
        "the problems are in another order than when the run began; the first different one is number ",
    ),
    "replaced": ([*ROWS[:16], ROWS[16] | {"answer": "7"}, *ROWS[17:]], "the problems differ from those that the run "),
    "another column": (
        [*ROWS[:16], ROWS[16] | {"level": 7}, *ROWS[17:]],
        "the problems differ from those that the run ",
    ),
    "fewer": (ROWS[:16] + ROWS[17:], "has 19 problems, and the run began with 20; the first different one is number "),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_problems_are_refused_by_the_first(case: str, checkpoint: Path, model: Path, tmp_path: Path) -> None:
    rows, said = OTHERS[case]
    with pytest.raises(CheckpointError) as refused:
        resumed(checkpoint, model, problems(tmp_path / "train.jsonl", rows))
    assert str(refused.value).startswith(f"data.train=data.jsonl: {said}")
    assert " number 17 (train-16); give the problems that the run began with, or start a new run." in str(refused.value)


def test_problems_that_are_missing_at_the_end(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 19 problems, .* with 20; the first missing one is number 20;"):
        resumed(checkpoint, model, problems(tmp_path / "train.jsonl", ROWS[:19]))


def test_other_held_out_problems_are_told(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    given = problems(tmp_path / "train.jsonl", ROWS)
    said = "evaluation.data holds other problems than before: do not compare its scores with earlier ones"
    assert resumed(checkpoint, model, given, given[:4]) == [said]
    assert resumed(checkpoint, model, given, []) == []


def test_a_checkpoint_of_an_earlier_version(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    (checkpoint / INPUTS).unlink()
    [warning] = resumed(checkpoint, model, problems(tmp_path / "train.jsonl", SWAPPED))
    assert warning.startswith(f"{checkpoint} is from an older version, without inputs.json: ")
    (checkpoint / INPUTS).write_text("[")
    with pytest.raises(CheckpointError, match=r"inputs\.json: cannot be read \(.*\); take another checkpoint\.$"):
        Inputs.read(checkpoint)


def test_a_problem_is_eight_digits() -> None:
    """The digest must never change between versions: checkpoints outlive them."""
    problem = Problem(id="any", text="1+1=", answer="2", extra={"b": [1], "a": "é"})
    assert problem_digests([problem, problem]) == "c9be3d9d" * 2


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be read \(No such file or directory\)\.$"):
        InputReader(tmp_path, []).inputs()
