"""The choice of the checkpoint to resume from, in a world of one process."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_rapo.checkpoints.folders import MODEL_FILES, CheckpointError, latest_checkpoint, point_to
from megatron_rapo.checkpoints.manifest import MANIFEST, whole, write_manifest
from megatron_rapo.checkpoints.resume import check_same_model, sound_checkpoint
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.run_folder import step_name
from tests.tiny_models import save_tiny_model

SHARD = "__0_0.distcp"


@pytest.fixture(autouse=True)
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make checkpoints of steps 1, 2 and 3."""
    for step in (1, 2, 3):
        folder = tmp_path / step_name(step)
        folder.mkdir()
        (folder / SHARD).write_bytes(bytes([step]) * 1000)
        write_manifest(folder, {SHARD: whole(folder / SHARD)})
        point_to(folder)
    return tmp_path


def flip(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[500] ^= 1
    (folder / SHARD).write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: is missing; take another checkpoint."),
    "truncated shard": (
        lambda folder: (folder / SHARD).write_bytes(bytes(999)),
        f"{SHARD}: has 999 bytes instead of 1,000; it is truncated or was overwritten, take another checkpoint.",
    ),
    "flipped bit": (
        flip,
        f"{SHARD}: bytes 0 to 1,000 have changed since they were written; the file is damaged, take another "
        "checkpoint.",
    ),
    "no manifest": (
        lambda folder: (folder / MANIFEST).unlink(),
        f": has no {MANIFEST}, so it is incomplete; take another.",
    ),
}


def test_the_latest_where_it_is_sound(root: Path) -> None:
    assert sound_checkpoint(root / step_name(3)) == (root / step_name(3), [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_sound_one_and_what_is_wrong_with_others(root: Path, damage: str) -> None:
    do, said = DAMAGES[damage]
    for step in (2, 3):
        do(root / step_name(step))
    found, problems = sound_checkpoint(root / step_name(3))
    assert found == root / step_name(1)
    for problem, step in zip(problems, (3, 2), strict=True):
        assert problem.startswith(str(root / step_name(step))) and problem.endswith(said)


def test_a_garbled_pointer_is_said(root: Path) -> None:
    (root / "latest").write_bytes(b"")
    flip(root / step_name(3))
    found, problems = sound_checkpoint(latest_checkpoint(root))
    assert found == root / step_name(2)
    assert problems[0].startswith(f"{root / 'latest'}: is missing, or does not name") and len(problems) == 2


def test_none_is_sound(root: Path) -> None:
    for step in (1, 2, 3):
        flip(root / step_name(step))
    with pytest.raises(CheckpointError, match=r"^no undamaged checkpoint to resume from: .*step-000003.*step-000001"):
        sound_checkpoint(root / step_name(3))


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", tied=True)
    shape = read_shape(model)
    checkpoint = tmp_path / "step-000007"
    (checkpoint / MODEL_FILES).mkdir(parents=True)
    config = json.loads((model / "config.json").read_text())
    (checkpoint / MODEL_FILES / "config.json").write_text(json.dumps(config))
    check_same_model(checkpoint, shape)
    other = dataclasses.replace(shape, num_layers=shape.num_layers + 1)
    message = (
        f"{checkpoint}: its model has num_layers={shape.num_layers}, but that of model.path has "
        f"{other.num_layers}; set model.path to the model that the run began with."
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_same_model(checkpoint, other)
