import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rapo.config import ConfigError
from megatron_rapo.models import WeightReader, read_shape, save_folder
from megatron_rapo.models.hf_weights import FolderWriter, copy_model_files, model_files
from megatron_rapo.models.stored_weights import INDEX, WEIGHTS
from tests.tiny_models import load_reference, save_tiny_model


def refusal(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as raised:
        call(*arguments, **keywords)
    return str(raised.value)


def contents(folder):
    """Read all tensors of a folder."""
    reader = WeightReader(folder)
    return {name: reader.read(name, 0, 0, 10**9) for name in reader.names}


def save(folder, tensors, *, like, dtype=torch.float32, **options):
    """Save a dict of tensors with save_folder."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    save_folder(folder, tensors.items(), shapes=shapes, dtype=dtype, like=like, **options)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "axis", "start", "stop"),
    [
        ("model.embed_tokens.weight", 0, 0, 131),
        ("model.embed_tokens.weight", 0, 66, 131),
        ("model.layers.1.self_attn.o_proj.weight", 1, 16, 48),
        ("model.layers.1.mlp.down_proj.weight", 1, 0, 80),
        ("model.layers.0.self_attn.q_proj.bias", 0, 32, 64),
        ("model.norm.weight", 0, 0, 64),
    ],
)
def test_slices(model, name, axis, start, stop):
    whole = load_file(model / WEIGHTS)[name]
    part = WeightReader(model).read(name, axis, start, stop)
    assert torch.equal(part, whole.narrow(axis, start, stop - start))
    assert part.dtype == whole.dtype


def test_names_and_whole_tensors(model):
    assert same(contents(model), load_file(model / WEIGHTS))


def test_sharded(model, tmp_path):
    load_reference(model).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / WEIGHTS).exists()
    assert same(contents(tmp_path), contents(model))


def test_sharded_with_a_file_missing(model, tmp_path):
    load_reference(model).save_pretrained(tmp_path, max_shard_size="100KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert refusal(contents, tmp_path) == (
        f"model.path={tmp_path}: {INDEX} names {lost.name}, not there; fetch the whole model."
    )


def test_broken_index(tmp_path):
    (tmp_path / INDEX).write_text("{")
    assert refusal(contents, tmp_path).startswith(f"{tmp_path / INDEX}: not valid JSON (")


def test_no_weights(tmp_path):
    assert refusal(contents, tmp_path) == (
        f"model.path={tmp_path}: neither {WEIGHTS} nor {INDEX} is there; give safetensors weights."
    )


def test_missing_tensor(model):
    assert refusal(WeightReader(model).read, "model.layers.9.mlp.up_proj.weight", 0, 0, 1) == (
        f"model.path={model}: tensor model.layers.9.mlp.up_proj.weight is missing; the checkpoint is not complete."
    )


# --- writing a folder ---


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_folder_loads_in_transformers(tmp_path, tied):
    like = save_tiny_model(tmp_path / "like", tied=tied)
    (like / "optimizer.bin").write_text("not to be copied")
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in contents(like).items()}
    save(tmp_path / "deep" / "hf", weights, like=like)
    saved = tmp_path / "deep" / "hf"
    assert same(dict(load_reference(saved).named_parameters()), weights)
    assert read_shape(saved) == read_shape(like)
    assert AutoTokenizer.from_pretrained(saved).encode("1+1=2") == AutoTokenizer.from_pretrained(like).encode("1+1=2")
    assert {path.name for path in saved.iterdir()} == {path.name for path in like.iterdir()} - {"optimizer.bin"}
    assert [path.name for path in saved.parent.iterdir()] == ["hf"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_are_saved_as_what_they_show_and_in_the_dtype_that_is_asked_for(model, tmp_path, dtype):
    tensors = {"rows": torch.arange(12.0).view(3, 4).T, "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    tensors["part"] = tensors["rows"][1:3]
    save(tmp_path / "hf", tensors, like=model, dtype=dtype)
    found = contents(tmp_path / "hf")
    assert same(found, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert {tensor.dtype for tensor in found.values()} == {dtype}


def test_tensors_come_in_any_order(model, tmp_path):
    expected = contents(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    backwards = [(name, expected[name]) for name in reversed(expected)]
    save_folder(tmp_path / "hf", backwards, shapes=shapes, dtype=torch.float32, like=model)
    save(tmp_path / "forwards", expected, like=model)
    assert (tmp_path / "hf" / WEIGHTS).read_bytes() == (tmp_path / "forwards" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", torch.ones(2)), ("a", torch.ones(2))], "a: written twice."),
        ([("c", torch.ones(2))], "c: not a tensor of this model."),
        ([("a", torch.ones(2, 1))], "a: has shape [2, 1] instead of [2]."),
        ([("a", torch.ones(2))], "not written: b."),
    ],
)
def test_what_is_written_must_be_the_model(model, tmp_path, tensors, message):
    with pytest.raises(ValueError) as raised:
        save_folder(tmp_path / "hf", tensors, shapes={"a": (2,), "b": (3,)}, dtype=torch.float32, like=model)
    assert str(raised.value) == message and not (tmp_path / "hf").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("said", [{"dtype": "float16"}, {"torch_dtype": "float16", "dtype": None}])
def test_the_configuration_says_which_dtype_the_weights_have(model, tmp_path, edited, dtype, said):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    like = edited(**said)
    save(tmp_path / "hf", contents(model), like=like, dtype=dtype)
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "hf", like))
    expected.pop("torch_dtype", None)
    assert config == expected | {"dtype": str(dtype).removeprefix("torch.")}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == dtype


def test_large_models_are_saved_in_shards(model, tmp_path):
    expected = contents(model)
    save(tmp_path / "hf", expected, like=model, max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert same(contents(tmp_path / "hf"), expected)
    assert same(dict(load_reference(tmp_path / "hf").named_parameters()), expected)


def test_a_new_folder_replaces_the_old_one_whole(model, tmp_path):
    folder = tmp_path / "hf"
    save(folder, {"old": torch.ones(2)}, like=model)
    (folder / "left.txt").write_text("of the old one")
    save(folder, {"new": torch.zeros(2)}, like=model)
    assert same(contents(folder), {"new": torch.zeros(2)})
    assert not (folder / "left.txt").exists()


class Interrupted(Exception):
    pass


def test_a_save_that_fails_leaves_the_old_folder(model, tmp_path):
    folder = tmp_path / "hf"
    save(folder, contents(model), like=model)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def weights():
        yield "model.norm.weight", torch.zeros(64)
        raise Interrupted

    shapes = {"model.norm.weight": (64,)}
    with pytest.raises(Interrupted):
        save_folder(folder, weights(), shapes=shapes, dtype=torch.float32, like=model)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("method", ["write", "finish"])
def test_a_first_save_that_fails_leaves_no_folder_and_does_not_stop_the_next(model, tmp_path, monkeypatch, method):
    def fail(*arguments, **keywords):
        raise Interrupted

    folder = tmp_path / "hf"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(FolderWriter, method, fail)
        save(folder, {"a": torch.ones(2)}, like=model)
    assert not folder.exists()
    (tmp_path / "hf.partial" / "left.safetensors").write_text("of the one that failed")
    save(folder, {"a": torch.ones(2)}, like=model)
    assert not (folder / "left.safetensors").exists() and not (tmp_path / "hf.partial").exists()


def test_saving_over_the_model_itself(model, tmp_path):
    """Configuration and tokenizer are copied before the old folder is removed."""
    folder = tmp_path / "own"
    shutil.copytree(model, folder)
    expected = {name: value + 1 for name, value in contents(folder).items()}
    save(folder, expected, like=folder)
    assert same(contents(folder), expected)
    assert read_shape(folder) == read_shape(model)


def test_what_belongs_to_a_model_is_files(tmp_path):
    """Sub-folders are left out, links are followed, and a file that cannot be read is refused by name."""
    source = tmp_path / "model"
    (source / "token_cache").mkdir(parents=True)
    (tmp_path / "blob").write_text("{}")
    (source / "tokenizer.json").symlink_to("../blob")
    (source / "config.json").write_text("[]")
    (source / "config.json").chmod(0o444)
    (source / "README.md").touch()
    copy_model_files(source, tmp_path / "copy")
    assert {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()} == {
        "tokenizer.json": "{}",
        "config.json": "[]",
    }
    assert not (tmp_path / "copy/tokenizer.json").is_symlink()
    (tmp_path / "copy/config.json").write_text("{}")  # a copy can be written to
    (tmp_path / "blob").unlink()
    with pytest.raises(ConfigError) as refused:
        model_files(source)
    assert str(refused.value) == (
        f"model.path={source}: tokenizer.json is a link to ../blob, which cannot be read (No such file or directory), "
        "and every checkpoint has a copy of it; restore or remove it."
    )
