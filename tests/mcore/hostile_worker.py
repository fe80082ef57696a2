"""`hostile_worker.py FOLDER` on one process: give checkpoints with code in them to all that reads checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_rapo.checkpoints.manifest import MANIFEST, whole, write_manifest
from megatron_rapo.checkpoints.restricted_pickle import BACKEND, COMMON, METADATA
from megatron_rapo.convert.inspect import summarise
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.reshard import reshard_megatron
from megatron_rapo.convert.source import open_source
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.convert.verify import compare
from megatron_rapo.errors import InputError
from megatron_rapo.evaluation.model import EvaluatedModel
from megatron_rapo.mcore.checkpoint import load_checkpoint
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.runtime.run_folder import RunFolder
from tests.launch import write_result
from tests.mcore.checkpoint_worker import step
from tests.mcore.saving import saved
from tests.patience import COLLECTIVE_S
from tests.runs import recorded_rollout, tiny_config

EVIL = "evil.distcp"
LAYOUT = Layout()


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def main(folder: Path) -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    model = folder / "model"
    config = tiny_config(model, folder)
    policy = Policy(config, read_shape(model), init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0))
    step(policy, config, recorded_rollout(model, 4))
    sound = saved(RunFolder(folder / "run").checkpoints, 1, policy, {"step": 1})
    found: dict[str, Any] = {}
    for name, attack in {"none": lambda *_: None, **ATTACKS}.items():
        run, marker = folder / name.replace(" ", "-"), folder / f"marker of {name}".replace(" ", "-")
        checkpoint = RunFolder(run).checkpoint(1)
        shutil.copytree(sound.parent.parent, run)
        attack(checkpoint, marker)
        manifest(checkpoint)
        for entry, read in ENTRIES.items():
            found[f"{name}: {entry}"] = {"said": said(read, checkpoint, policy), "run": marker.exists()}
    write_result(found)
    dist.destroy_process_group()


def said(read: Callable[[Path, Policy], Any], checkpoint: Path, policy: Policy) -> str:
    try:
        read(checkpoint, policy)
    except InputError as error:
        return str(error)
    return ""


def manifest(checkpoint: Path) -> None:
    """Write a new manifest, as an attacker can."""
    kept = json.loads((checkpoint / MANIFEST).read_text())["files"]
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    written = [name for name in names if name != MANIFEST]
    of_tensors = {name: kept[name] for name in written if name.startswith("__")}  # by chunk
    write_manifest(checkpoint, {name: whole(checkpoint / name) for name in written} | of_tensors)


def of_metadata(change: Callable[[Any, Path], Any]) -> Callable[[Path, Path], None]:
    def attack(checkpoint: Path, marker: Path) -> None:
        metadata = pickle.loads((checkpoint / METADATA).read_bytes())
        (checkpoint / METADATA).write_bytes(pickle.dumps(change(metadata, marker)))

    return attack


def of_object(kind: str, evil: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """Return an attack that replaces every object of the kind by another one, in a file of its own."""

    def attack(checkpoint: Path, marker: Path) -> None:
        stream = io.BytesIO()
        torch.save([evil(marker)], stream)
        (checkpoint / EVIL).write_bytes(stream.getvalue())
        metadata = pickle.loads((checkpoint / METADATA).read_bytes())
        chosen = [index for index in metadata.storage_data if kind in index.fqn]
        assert chosen, list(metadata.storage_data)
        for index in chosen:
            place = metadata.storage_data[index]
            metadata.storage_data[index] = type(place)(EVIL, 0, len(stream.getvalue()))
        (checkpoint / METADATA).write_bytes(pickle.dumps(metadata))

    return attack


def with_planner_data(metadata: Any, marker: Path) -> Any:
    metadata.planner_data = {"a": [Evil(marker)]}
    return metadata


def outside(metadata: Any, _marker: Path) -> Any:
    for index, place in metadata.storage_data.items():
        metadata.storage_data[index] = type(place)(f"../step-000001/{place.relative_path}", place.offset, place.length)
    return metadata


def in_common(checkpoint: Path, marker: Path) -> None:
    common = torch.load(checkpoint / COMMON, weights_only=False)
    torch.save(common | {"trainer": Evil(marker)}, checkpoint / COMMON)


def another_backend(checkpoint: Path, _marker: Path) -> None:
    (checkpoint / BACKEND).write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')


def pickled(marker: Path) -> torch.Tensor:
    """Return pickled code in a tensor: Transformer Engine keeps its state so, and unpickles it."""
    return torch.frombuffer(bytearray(pickle.dumps(Evil(marker))), dtype=torch.uint8)


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "metadata is code": of_metadata(lambda _, marker: Evil(marker)),
    "code in metadata": of_metadata(with_planner_data),
    "metadata of nothing": of_metadata(lambda *_: MetadataIndex("a")),
    "files outside": of_metadata(outside),
    "code in common": in_common,
    "another backend": another_backend,
    "code in an object": of_object("random", Evil),
    "code in FP8 state": of_object("_extra_state", pickled),
}
ENTRIES: dict[str, Callable[[Path, Policy], Any]] = {
    "inspect": lambda checkpoint, _: summarise(checkpoint, None, no_progress),
    "verify": lambda checkpoint, _: list(compare(*(open_source(checkpoint) for _ in range(2)), no_progress)),
    "convert": lambda checkpoint, _: megatron_to_hf(
        checkpoint,
        checkpoint.parent / "hf",
        like=None,
        dtype=None,
        max_shard_size="5GB",
        processes=1,
        progress=no_progress,
    ),
    "reshard": lambda checkpoint, _: reshard_megatron(
        checkpoint, checkpoint.parent / "anew", LAYOUT, like=None, processes=1, progress=no_progress
    ),
    "evaluate": lambda checkpoint, _: EvaluatedModel.find(checkpoint.parent.parent).prepare(),
    "resume": load_checkpoint,
}


def no_progress(_nbytes: int) -> None: ...


if __name__ == "__main__":
    main(Path(sys.argv[1]))
