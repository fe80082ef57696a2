"""2,000 seeded mutations of everything that users hand over. Each is refused in a line, or holds at the next stage too.

Settings, config.json, the index and the headers of weights, rows of data, and checkpoints go through the functions that
the commands call first. A failure shows the seed and what was mutated; `_case(subject, seed)` makes it again.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from megatron_rapo.algo.reweighting import phi_of
from megatron_rapo.checkpoints.folders import check_resumable, latest_checkpoint
from megatron_rapo.checkpoints.manifest import MANIFEST, Manifest
from megatron_rapo.checkpoints.resume import check_same_model
from megatron_rapo.config import Config
from megatron_rapo.config.file import load_config
from megatron_rapo.convert.inspect import summarise
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.source import open_source
from megatron_rapo.convert.to_megatron import hf_to_megatron
from megatron_rapo.data import build_prompts, load_problems, load_tokenizer, template_of
from megatron_rapo.models import WeightReader, check_agreement, check_weights, read_shape
from megatron_rapo.models.parameter_map import TORCH_NORMS, fill, hf_shapes, trainer_shards
from megatron_rapo.models.stored_weights import INDEX, WEIGHTS
from megatron_rapo.preflight.checks import check_machine, check_model, check_rollout, check_world_size
from megatron_rapo.preflight.fit import Machine, estimate
from megatron_rapo.preflight.seconds import HARDWARE
from megatron_rapo.runtime.run_folder import step_of
from tests.fuzz import NUMBERS, TEXTS, mutated_bytes, mutated_json, problem
from tests.settings import MINIMAL
from tests.tiny_models import load_reference, save_tiny_model

CASES = {
    "settings": 800,
    "model": 300,
    "index": 150,
    "header": 200,
    "rows": 250,
    "table": 50,
    "settings of a checkpoint": 100,
    "manifest": 50,
    "checkpoint": 100,
}
SHOWN = 8  # failures of a subject

SETTINGS = (
    MINIMAL.replace("[batch]", "max_prompt_tokens = 128\n[batch]").replace("= 512", "= 256")
    + """
[evaluation]
data = "heldout.jsonl"
k = [1, 4]
max_completion_tokens = 256
[reward.length]
free_tokens = 16
full_tokens = 64
penalty = 0.5
[[reward.functions]]
name = "own"
function = "m:f"
range = [0.0, 1.0]
[algorithm]
divergence = "forward_kl"
phi = "sigmoid"
"""
)
ROWS = [
    {"problem": "What is 1 + 1?", "answer": "2", "id": "a"},
    {"problem": "What is 2 * 3?", "answer": 6, "unique_id": 7, "level": None},
    {"problem": "x\u00e9", "answer": 0.5, "solution": {"text": ["a"]}},
]


@dataclass(frozen=True)
class Places:
    """Folders that cases are written into, each made once."""

    model: Path
    sharded: Path
    run: Path
    data: Path

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / "step-000003"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("fuzz")
    model = save_tiny_model(root / "model", tied=False, num_kv_heads=2, vocab_size=131)
    load_reference(model).save_pretrained(root / "sharded", max_shard_size="200KB")
    found = Places(model=model, sharded=root / "sharded", run=root / "run", data=root / "data")
    found.data.mkdir()
    found.checkpoint.parent.mkdir(parents=True)
    hf_to_megatron(model, found.checkpoint, Layout(), dtype=torch.float32, processes=1, progress=lambda _: None)
    (found.checkpoint.parent / "latest").write_text("step-000003\n")
    return found


def test_what_is_not_mutated_holds(places: Places) -> None:
    """Otherwise every mutation would be refused for another reason."""
    _good(places)
    for world in (1, 8):
        _hold(load_config(places.data / "good.toml"), places, world)
    for model in (places.model, places.sharded):
        _load(model)
    (places.data / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    _read(places, places.data / "rows.jsonl")
    (places.checkpoint / "settings.json").write_text(json.dumps(_good(places)))
    _resume(places)
    open_source(places.checkpoint)


@pytest.mark.parametrize("subject", CASES)
def test_mutations(places: Places, subject: str) -> None:
    failures = []
    for seed in range(CASES[subject]):
        what, use, lines = _case(places, subject, seed)
        found = problem(use, max_lines=lines)
        if found:
            failures.append(f"seed {seed}: {found}\n    of {what!r:.400}")
    assert not failures, f"{len(failures)} of {CASES[subject]}:\n" + "\n".join(failures[:SHOWN])


Case = tuple[object, Callable[[], object], int]  # what was mutated, its use, the lines that a refusal may have


def _case(places: Places, subject: str, seed: int) -> Case:
    make: dict[str, Callable[[Places, Random], Case]] = {
        "settings": _settings,
        "model": _model,
        "index": _index,
        "header": _header,
        "rows": _rows,
        "table": _table,
        "settings of a checkpoint": _settings_of_checkpoint,
        "manifest": _manifest,
        "checkpoint": _checkpoint,
    }
    return make[subject](places, Random(f"{subject} {seed}"))


# --- settings ---


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting, as --set names it."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [*kinds, *(of for kind in kinds for of in get_args(kind))]
        nested = next((k for k in inner if isinstance(k, type) and issubclass(k, BaseModel)), None)
        index = "0." if name == "functions" else ""
        yield from _names(nested, f"{prefix}{name}.{index}") if nested else [f"{prefix}{name}"]


NAMES = tuple(_names(Config))
TOML_VALUES = (
    *(str(number) for number in NUMBERS),
    *(json.dumps(text) for text in TEXTS if "\ud800" not in text),
    *("true", "false", "[]", "{}", "[1]", "[1, 4]", "1,4", "[nan]", "{a = 1}", "2026-01-31", "7" * 5000, "[" * 5000),
    *("100", "1e-6", "0.5", "64", "none", "every", "none", "linear", "hybrid", "0x10", '"""', "\x1b[2J", "\ud800", ""),
)


PLAUSIBLE = ("0", "1", "2", "4", "8", "16", "64", "0.25", "0.5", "0.9", "1.0", "2.0", "1e-6", "true", "false", "[1, 2]")
EXTREMES = ("1e-3", "80", "1024", "16384", "604800.0", "1e6", "1000000000", "1073741824", "16777216", "4294967295")


def _settings(places: Places, random: Random) -> Case:
    text, overrides = SETTINGS, []
    if random.random() < 0.15:
        content = mutated_bytes(random, text.encode())
    else:
        content = text.encode()
        for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
            name = random.choice(NAMES)
            if random.random() < 0.1:
                name = random.choice((name[:-1], f"{name}.0", f"{name}.x", name.replace(".", "", 1), f"\x1b{name}", ""))
            overrides.append(f"{name}={random.choice(random.choice((TOML_VALUES, PLAUSIBLE, PLAUSIBLE, EXTREMES)))}")
    path = places.data / "run.toml"
    path.write_bytes(content)

    def use() -> None:
        config = load_config(path, overrides)
        for world in (1, 8):
            _hold(config, places, world)

    return overrides or content, use, 1 + max(3, len(overrides)) * 2


def _hold(config: Config, places: Places, world: int) -> None:
    """Do with settings what a run does next, as far as that is cheap."""
    shape = read_shape(places.model)
    timedelta(seconds=config.run.timeout_s)
    assert Config.model_validate(config.model_dump(exclude_unset=True)) == config
    assert json.loads(config.to_json())["run"]["steps"] == config.run.steps
    algorithm, (lowest, highest) = config.algorithm, config.reward.range
    phi = phi_of(
        torch.tensor([lowest, config.reward.middle, highest]).clamp(lowest, highest),
        shape=algorithm.phi,
        reward_range=(lowest, highest),
        phi_min=algorithm.phi_min,
        phi_max=algorithm.phi_max,
        exponent=algorithm.phi_exponent,
        sharpness=algorithm.phi_sharpness,
    )
    assert phi.isfinite().all() and math.isfinite(math.exp(algorithm.log_rho_cap)), "no finite weights"
    check_world_size(config, world)
    check_model(config, shape)
    check_rollout(config, shape, world)
    check_machine(config)
    machine = Machine(gpus=world, memory_bytes=2**36, overhead_bytes=0.0, hardware=HARDWARE["h100"], layers="torch")
    found = estimate(shape, config, machine, 64.0)
    assert all(math.isfinite(seconds) for seconds in found.seconds.values())


# --- models ---


def _model(places: Places, random: Random) -> Case:
    content = mutated_json(random, json.loads((places.model / "config.json").read_text()))
    folder = _folder(places, {"config.json": content, WEIGHTS: (places.model / WEIGHTS).read_bytes()})
    return content, lambda: _load(folder), 1


def _load(folder: Path, *, agreement: bool = True) -> None:
    """Read what `train` reads of a model before it builds anything, and the weights as the trainer does."""
    shape = read_shape(folder)
    check_weights(folder, hf_shapes(shape), tied=shape.tied)
    if agreement:
        check_agreement(folder, shape)
    reader = WeightReader(folder)
    for shard in trainer_shards(shape, tensor=1, rank=0, norms=TORCH_NORMS).values():
        fill(torch.empty(shard.shape), shard, reader.read)


def _folder(places: Places, files: dict[str, bytes]) -> Path:
    folder = places.data / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _index(places: Places, random: Random) -> Case:
    content = mutated_json(random, json.loads((places.sharded / INDEX).read_text()))
    folder = _folder(places, {path.name: path.read_bytes() for path in places.sharded.iterdir()} | {INDEX: content})
    return content, lambda: _load(folder, agreement=False), 1


def _header(places: Places, random: Random) -> Case:
    """Take a safetensors file apart: the length of its JSON header, the header, the numbers."""
    whole = (places.model / WEIGHTS).read_bytes()
    [length] = struct.unpack("<Q", whole[:8])
    header, numbers = whole[8 : 8 + length], whole[8 + length :]
    match random.randrange(5):
        case 0:
            content = mutated_bytes(random, whole[: 8 + length]) + numbers
        case 1:
            content = whole[: random.randrange(len(whole))]
        case 2:
            header = mutated_json(random, json.loads(header))
            content = struct.pack("<Q", len(header)) + header + numbers
        case _:
            header = json.dumps(_other_tensors(random, json.loads(header))).encode()
            content = struct.pack("<Q", len(header)) + header + numbers
    folder = _folder(places, {WEIGHTS: content, "config.json": (places.model / "config.json").read_bytes()})
    return content[:2000], lambda: _load(folder, agreement=False), 1


def _other_tensors(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    """A sound header of other tensors over the same numbers."""
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    name = random.choice(list(tensors))
    tensor = tensors.pop(name)
    match random.randrange(5):
        case 0:
            tensor["shape"] = random.choice(
                ([math.prod(tensor["shape"])], tensor["shape"][::-1], [1, *tensor["shape"]])
            )
        case 1:
            tensor["dtype"] = random.choice(("I32", "U32"))
        case 2:
            tensor |= {"dtype": random.choice(("BF16", "F16", "I16")), "shape": [2, *tensor["shape"]]}
        case 3:
            name = random.choice((f"{name}_scale_inv", name.replace("model.", ""), "model.rotary_emb.inv_freq", "\x1b"))
        case _:
            other = random.choice(list(tensors))
            tensor, tensors[other] = tensors[other], tensor
    return {**tensors, name: tensor}


# --- data ---


def _read(places: Places, path: Path) -> None:
    problems = load_problems(path)
    prompts = build_prompts(problems, load_tokenizer(places.model), template_of("plain"), 512)
    json.dumps([each.problem.id for each in prompts.prompts], ensure_ascii=False).encode()


def _rows(places: Places, random: Random) -> Case:
    lines = [json.dumps(row).encode() for row in ROWS]
    place = random.randrange(len(lines))
    lines[place] = mutated_json(random, ROWS[place]).replace(b"\n", b" ")
    content = b"\n".join(lines)
    if random.random() < 0.2:
        content = mutated_bytes(random, content)
    path = places.data / "rows.jsonl"
    path.write_bytes(content)
    return content, lambda: _read(places, path), 1


def _table(places: Places, random: Random) -> Case:
    """A Parquet file with a damaged page or footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = places.data / "rows.parquet"
    pq.write_table(pa.table({"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"]}), path)
    content = mutated_bytes(random, path.read_bytes())
    path.write_bytes(content)
    return content, lambda: _read(places, path), 1


# --- checkpoints ---


def _resume(places: Places) -> None:
    """Read what `train --resume` and the tools read of a checkpoint."""
    config = load_config(places.data / "good.toml")
    folder = latest_checkpoint(places.run / "checkpoints")
    assert step_of(folder) == 3
    manifest = Manifest(folder)
    manifest.verify(manifest.files)
    check_resumable(folder, config)
    check_same_model(folder, read_shape(places.model))


def _good(places: Places) -> dict[str, Any]:
    path = places.data / "good.toml"
    path.write_text(SETTINGS)
    settings: dict[str, Any] = json.loads(load_config(path).to_json())
    return settings


def _settings_of_checkpoint(places: Places, random: Random) -> Case:
    content = mutated_json(random, _good(places))
    (places.checkpoint / "settings.json").write_bytes(content)
    return content, lambda: check_resumable(places.checkpoint, load_config(places.data / "good.toml")), 1


def _manifest(places: Places, random: Random) -> Case:
    """The manifest, and which checkpoint is the latest."""
    settings, good = _good(places), (places.checkpoint / MANIFEST).read_bytes()
    (places.checkpoint / "settings.json").write_text(json.dumps(settings))
    latest = places.run / "checkpoints" / "latest"
    if random.random() < 0.3:
        content = mutated_bytes(random, latest.read_bytes())
        changed = latest
    else:
        content = mutated_json(random, json.loads(good))
        changed = places.checkpoint / MANIFEST
    before = changed.read_bytes()

    def use() -> None:
        changed.write_bytes(content)
        try:
            _resume(places)
        finally:
            changed.write_bytes(before)

    return content, use, 1


def _checkpoint(places: Places, random: Random) -> Case:
    """A file of a checkpoint without a manifest, as Megatron-LM writes one."""
    folder = places.data / "checkpoint"
    if not folder.exists():
        shutil.copytree(places.checkpoint, folder)
        (folder / MANIFEST).unlink()
    names = (".metadata", "common.pt", "metadata.json", "hf/config.json", "__0_0.distcp")
    changed = folder / random.choice(names)
    before = changed.read_bytes()
    is_json = changed.suffix == ".json"
    content = mutated_json(random, json.loads(before)) if is_json else mutated_bytes(random, before)

    def use() -> None:
        changed.write_bytes(content)
        try:
            open_source(folder)
            summarise(folder, None, lambda _: None)
        finally:
            changed.write_bytes(before)

    return (changed.name, content), use, 1
