"""The safetensors files of a folder must hold the model of its config.json, and nothing else."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_rapo.config import ConfigError
from megatron_rapo.convert.source import open_source
from megatron_rapo.models import WeightReader, check_weights, read_shape
from megatron_rapo.models.parameter_map import TORCH_NORMS, fill, hf_shapes, trainer_shards
from megatron_rapo.models.stored_weights import INDEX, WEIGHTS, read_headers
from tests.tiny_models import load_reference, save_tiny_model

ONE_MODEL = "take weights and config.json of one model."


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture
def folder(model, tmp_path):
    """Copy the untied model."""
    return shutil.copytree(model, tmp_path / "model")


def check(folder):
    shape = read_shape(folder)
    return check_weights(folder, hf_shapes(shape), tied=shape.tied)


def refusal(folder, call=check):
    with pytest.raises(ConfigError) as raised:
        call(folder)
    return str(raised.value)


def edit(folder, change):
    """Apply `change` to the dict of weights."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_a_model(model, tied):
    for folder in (model, tied):
        stored = check(folder)
        assert set(stored) == set(load_file(folder / WEIGHTS)) and {each.dtype for each in stored.values()} == {"F32"}


@pytest.mark.parametrize(
    ("changes", "tensor", "found", "promised"),
    [
        ({"intermediate_size": 128}, "model.layers.0.mlp.gate_proj.weight", [160, 64], [128, 64]),
        ({"vocab_size": 120}, "model.embed_tokens.weight", [131, 64], [120, 64]),
        ({"num_key_value_heads": 2}, "model.layers.0.self_attn.k_proj.weight", [32, 64], [64, 64]),
        ({"head_dim": 16}, "model.layers.0.self_attn.q_proj.weight", [64, 64], [32, 64]),
        ({"hidden_size": 96, "head_dim": 32}, "model.embed_tokens.weight", [131, 64], [131, 96]),
    ],
)
def test_another_size_than_config_json_says(folder, changes, tensor, found, promised):
    configure(folder, **changes)
    expected = f"{folder / WEIGHTS}: {tensor} has shape {found}, and config.json promises {promised}; {ONE_MODEL}"
    assert refusal(folder) == expected
    assert refusal(folder, open_source) == expected  # of every conversion, inspect and verify


def test_more_layers_than_the_weights_have(folder):
    configure(folder, num_hidden_layers=3)
    assert refusal(folder) == (
        f"model.path={folder}: the weights lack model.layers.2.input_layernorm.weight, "
        "model.layers.2.self_attn.q_proj.weight, model.layers.2.self_attn.k_proj.weight and 9 more, of the 39 tensors "
        f"that config.json promises; {ONE_MODEL}"
    )


def test_fewer_layers_than_the_weights_have(folder):
    configure(folder, num_hidden_layers=1)
    assert refusal(folder).startswith(f"model.path={folder}: the weights have model.layers.1.input_layernorm.weight, ")
    assert refusal(folder).endswith(
        f"which config.json does not promise, and leaving it out would make another model; {ONE_MODEL}"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model.layers.0.mlp.gate_proj.bias", ONE_MODEL),
        (
            "model.layers.0.mlp.gate_proj.weight_scale_inv",
            "they look quantised: give the model's bfloat16 weights, or dequantise them.",
        ),
        (
            "model.layers.0.mlp.gate_proj.lora_A.weight",
            "they look like an adapter: merge it into its base model first.",
        ),
    ],
)
def test_a_tensor_that_would_be_left_out(folder, name, advice):
    edit(folder, lambda tensors: tensors.update({name: torch.ones(3)}))
    assert refusal(folder) == (
        f"model.path={folder}: the weights have {name}, which config.json does not promise, and leaving it out would "
        f"make another model; {advice}"
    )


def test_buffers_that_follow_from_config_json_are_ignored(folder):
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
    edit(folder, lambda tensors: tensors.update({name: torch.ones(16, dtype=torch.float64) for name in names}))
    assert names[0] in read_headers(folder) and names[0] not in check(folder)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "F64"])
def test_number_formats_that_are_not_read(folder, dtype):
    of = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8, "F64": torch.float64}[dtype]
    name = "model.layers.1.mlp.down_proj.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name].to(of)}))
    assert refusal(folder) == (
        f"{folder / WEIGHTS}: {name} has number format {dtype}, and F32, BF16, F16 are read; give the model's bfloat16 "
        "weights, or dequantise them."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
def test_half_precision_weights_are_loaded_as_the_trainer_keeps_them(folder, dtype, into):
    """They are rounded once from the file's format. A conversion keeps that format."""
    edit(folder, lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    assert open_source(folder).dtype == dtype
    check(folder)
    tensors, reader = load_file(folder / WEIGHTS), WeightReader(folder)
    shards = trainer_shards(read_shape(folder), tensor=1, rank=0, norms=TORCH_NORMS)
    for megatron, name in (
        ("decoder.layers.1.mlp.linear_fc2.weight", "model.layers.1.mlp.down_proj.weight"),
        ("output_layer.weight", "lm_head.weight"),
    ):
        local = torch.empty(shards[megatron].shape, dtype=into)
        fill(local, shards[megatron], reader.read)
        assert torch.equal(local, tensors[name].to(into)) and not torch.equal(local, torch.zeros_like(local))


def test_several_number_formats_are_converted_without_loss(folder):
    norm = "model.norm.weight"
    edit(folder, lambda tensors: tensors.update({n: v.bfloat16() for n, v in tensors.items() if n != norm}))
    assert open_source(folder).dtype == torch.float32
    edit(folder, lambda tensors: tensors.update({norm: tensors[norm].half()}))
    assert open_source(folder).dtype == torch.float32  # neither bfloat16 nor float16 holds the other


def test_a_tied_model_with_an_output_layer_of_its_own(tied, tmp_path):
    folder = shutil.copytree(tied, tmp_path / "model")
    embedding = "model.embed_tokens.weight"
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    assert "lm_head.weight" not in check(folder)  # the same to the bit: nothing is lost
    edit(folder, lambda tensors: tensors["lm_head.weight"][127].neg_())
    assert refusal(folder) == (
        f"model.path={folder}: config.json has tie_word_embeddings=true, and lm_head.weight differs from {embedding}; "
        "set tie_word_embeddings to false if the model was trained so, or remove lm_head.weight from the weights."
    )
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].half()}))
    assert " differs from " in refusal(folder)
    configure(folder, tie_word_embeddings=False)
    check(folder)


def test_an_untied_model_without_an_output_layer(folder):
    edit(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert refusal(folder).startswith(f"model.path={folder}: the weights lack lm_head.weight, of the 27 tensors ")


# --- files that are no weights ---

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; download the file again."),
        (POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file."),
        (b"PK\x03\x04 a zip file of torch.save, surely", "not a whole safetensors file ("),
        (b"\xff" * 64, "not a whole safetensors file ("),
        (b"\x02\0\0\0\0\0\0\0{}", None),  # without a tensor, but whole
    ],
)
def test_files_that_hold_no_weights(folder, content, said):
    (folder / WEIGHTS).write_bytes(content)
    expected = f"{folder / WEIGHTS}: {said}" if said else f"model.path={folder}: the weights lack "
    assert refusal(folder).startswith(expected) and len(refusal(folder).splitlines()) == 1


@pytest.mark.parametrize("left", [4, 100, 5000, -1])
def test_files_cut_short(folder, left):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:left])
    assert refusal(folder).startswith(f"{folder / WEIGHTS}: not a whole safetensors file (")
    assert refusal(folder).endswith("; it is cut short or damaged, download it again.")


def test_config_and_index_that_are_pointers(folder):
    (folder / INDEX).write_bytes(POINTER)
    assert refusal(folder).startswith(f"{folder / INDEX}: is a Git LFS pointer, not the file itself; ")
    (folder / "config.json").write_bytes(POINTER)
    assert refusal(folder).startswith(f"{folder / 'config.json'}: is a Git LFS pointer, not the file itself; ")


def test_a_folder_for_a_file(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert refusal(folder) == f"{folder / WEIGHTS}: is not a file; fetch the whole model."


@pytest.mark.parametrize("name", ["config.json", INDEX, WEIGHTS])
def test_a_pipe_for_a_file(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    said = {"config.json": f"model.path={folder}: holds no config.json; "}.get(
        name, f"{folder / name}: is not a file; "
    )
    assert refusal(folder).startswith(said)


# --- the index of several files ---


@pytest.fixture
def sharded(model, tmp_path):
    load_reference(model).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


def index(folder, change):
    content = json.loads((folder / INDEX).read_text())
    change(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))


def test_several_files(sharded, model):
    assert set(check(sharded)) == set(check(model))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\x1b.safetensors", "weights.bin"]
)
def test_an_index_that_leads_out_of_the_folder(sharded, name):
    index(sharded, lambda files: files.update({"model.norm.weight": name}))
    assert refusal(sharded) == (
        f"{sharded / INDEX}: names {name!r}, not a .safetensors file in the folder itself; copy the model's own file "
        "again."
    )


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": ["b"]}, "model.safetensors", 7])
def test_an_index_without_a_map(sharded, weight_map):
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(sharded) == (
        f"{sharded / INDEX}: weight_map is not a map from tensors to file names; copy the model's own file again."
    )


def test_an_index_that_does_not_fit_its_files(sharded):
    whole = json.loads((sharded / INDEX).read_text())["weight_map"]
    [other, *_] = set(whole.values()) - {whole["model.norm.weight"]}
    fix = "not in the file that it names; fetch the whole model again, into an empty folder."
    index(sharded, lambda files: files.update({"model.norm.weight": other}))
    assert refusal(sharded) == f"{sharded / INDEX}: model.norm.weight {fix}"
    index(sharded, lambda files: files.pop("model.norm.weight"))
    assert refusal(sharded) == f"{sharded / INDEX}: model.norm.weight {fix}"


def test_a_tensor_in_two_files(sharded):
    files = json.loads((sharded / INDEX).read_text())["weight_map"]
    name, other = "model.norm.weight", sorted(set(files.values()) - {files["model.norm.weight"]})[0]
    tensors = load_file(sharded / other) | {name: torch.zeros(64)}
    save_file(tensors, sharded / other, metadata={"format": "pt"})
    first, second = sorted([other, files[name]])
    assert refusal(sharded) == (
        f"model.path={sharded}: {name} is in {first} and in {second}; fetch the whole model again, into an "
        "empty folder."
    )


def test_two_sets_of_weights(sharded, model):
    shutil.copy(model / WEIGHTS, sharded / WEIGHTS)
    assert refusal(sharded) == (
        f"model.path={sharded}: holds {WEIGHTS} and an {INDEX} of other files, so there are two sets of weights; "
        "remove the one that is not meant."
    )
