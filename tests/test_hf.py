import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rapo import hf
from megatron_rapo.config import ConfigError
from megatron_rapo.hf import INDEX, WEIGHTS, ModelShape, open_weights, read_shape, save_folder
from tests.models import load_reference, save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(
        tmp_path_factory.mktemp("models") / "untied", tied=False, vocab_size=131, num_kv_heads=1, intermediate_size=160
    )


@pytest.fixture
def edited(model, tmp_path):
    """edited(key=value, ...): a folder whose config.json says so; None takes the key away."""

    def edit(**changes):
        config = json.loads((model / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return edit


def refusal(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as raised:
        call(*arguments, **keywords)
    return str(raised.value)


def contents(folder):
    """All tensors of a folder, by the reader."""
    with open_weights(folder) as reader:
        return {name: reader.read(name, 0, 0, 10**9) for name in reader.names}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# --- config.json ---


@pytest.mark.parametrize("tied", [True, False])
def test_shape_of_a_saved_model(tmp_path, tied):
    folder = save_tiny_model(
        tmp_path,
        tied=tied,
        vocab_size=131,
        hidden_size=128,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=160,
        max_positions=512,
    )
    assert read_shape(folder) == ModelShape(
        architecture="Qwen2ForCausalLM",
        num_layers=3,
        hidden_size=128,
        ffn_hidden_size=160,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=131,
        tied=tied,
        qkv_bias=True,
        qk_norm=False,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        max_position=512,
    )


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"rms_norm_eps": 1e-5}, "norm_eps", 1e-5),
        ({"num_key_value_heads": None}, "num_kv_heads", 2),  # as many as heads
        ({"head_dim": 48}, "head_dim", 48),
        ({"tie_word_embeddings": None}, "tied", False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta", 1e6),
        ({"rope_parameters": None, "rope_theta": 1000000}, "rope_theta", 1e6),  # as transformers 4 wrote it
        ({"rope_parameters": None}, "rope_theta", 1e4),
    ],
)
def test_settings_that_may_be_left_out_or_changed(edited, changes, field, expected):
    assert getattr(read_shape(edited(**changes)), field) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type=yarn {} in ['default']"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope type=linear {} in ['default']"),
        ({"use_sliding_window": True}, "use_sliding_window=True {} in [False]"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu {} in ['silu']"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(edited, changes, said):
    name = said.partition("=")[0]
    folder = edited(**changes)
    between = f"is not implemented and would be trained wrongly; use a model with {name}"
    assert refusal(read_shape, folder) == f"model.path={folder}: {said.format(between)}."


@pytest.mark.parametrize(
    ("architectures", "named"), [(["MistralForCausalLM"], "MistralForCausalLM"), ([], "(none)"), (None, "(none)")]
)
def test_unsupported_architecture(edited, architectures, named):
    folder = edited(architectures=architectures)
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: architecture {named} is not supported; supported: LlamaForCausalLM, "
        "Qwen2ForCausalLM, Qwen3ForCausalLM. To add one, say what it is made of in hf.py and where its parameters live "
        "in reshard/layout.py."
    )


def test_no_folder(tmp_path):
    folder = tmp_path / "none"
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: no such folder; give a folder with config.json and *.safetensors."
    )


def test_no_config(tmp_path):
    assert refusal(read_shape, tmp_path) == (
        f"model.path={tmp_path}: holds no config.json; give a Hugging Face model folder."
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"architectures": ', "not valid JSON (Expecting value: line 1 column 19 (char 18)); mend the file."),
        (b"\xff\xff", "not valid JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); mend"),
        (b"[1, 2]", "not a JSON object; mend the file."),
    ],
)
def test_broken_config(tmp_path, content, said):
    (tmp_path / "config.json").write_bytes(content)
    assert refusal(read_shape, tmp_path).startswith(f"{tmp_path / 'config.json'}: {said}")


@pytest.mark.parametrize(
    "missing",
    [
        ["num_hidden_layers"],
        ["hidden_size"],
        ["intermediate_size"],
        ["num_attention_heads"],
        ["vocab_size"],
        ["max_position_embeddings"],
        ["hidden_size", "vocab_size"],
    ],
)
def test_config_without_a_number_that_it_needs(edited, missing):
    folder = edited(**dict.fromkeys(missing))
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: config.json has no number for {', '.join(missing)}; take the model's own file."
    )


def test_config_with_text_for_a_number(edited):
    assert "config.json has no number for hidden_size; " in refusal(read_shape, edited(hidden_size="64"))


# --- reading weights ---


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
    with open_weights(model) as reader:
        part = reader.read(name, axis, start, stop)
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
    with open_weights(model) as reader:
        assert refusal(reader.read, "model.layers.9.mlp.up_proj.weight", 0, 0, 1) == (
            f"model.path={model}: tensor model.layers.9.mlp.up_proj.weight is missing; the checkpoint is not complete."
        )


# --- writing a folder ---


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_folder_loads_in_transformers(tmp_path, tied):
    like = save_tiny_model(tmp_path / "like", tied=tied)
    (like / "optimizer.bin").write_text("not to be copied")
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in contents(like).items()}
    save_folder(tmp_path / "deep" / "hf", iter(weights.items()), like=like)
    saved = tmp_path / "deep" / "hf"
    assert same(dict(load_reference(saved).named_parameters()), weights)
    assert read_shape(saved) == read_shape(like)
    assert AutoTokenizer.from_pretrained(saved).encode("1+1=2") == AutoTokenizer.from_pretrained(like).encode("1+1=2")
    assert {path.name for path in saved.iterdir()} == {path.name for path in like.iterdir()} - {"optimizer.bin"}
    assert [path.name for path in saved.parent.iterdir()] == ["hf"]


def test_views_and_other_dtypes_are_saved_as_they_are(model, tmp_path):
    weights = {"rows": torch.arange(12.0).view(3, 4).T, "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    weights["part"] = weights["rows"][1:3]
    save_folder(tmp_path / "hf", weights.items(), like=model)
    found = contents(tmp_path / "hf")
    assert same(found, weights) and found["half"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("said", [{"dtype": "float16"}, {"torch_dtype": "float16", "dtype": None}])
def test_the_configuration_says_which_dtype_the_weights_have(model, tmp_path, edited, dtype, said):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    like = edited(**said)
    save_folder(tmp_path / "hf", [(name, value.to(dtype)) for name, value in contents(model).items()], like=like)
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "hf", like))
    expected.pop("torch_dtype", None)
    assert config == expected | {"dtype": str(dtype).removeprefix("torch.")}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == dtype


def test_large_models_are_saved_in_shards(model, tmp_path, monkeypatch):
    split = partial(hf.split_torch_state_dict_into_shards, max_shard_size="100KB")
    monkeypatch.setattr(hf, "split_torch_state_dict_into_shards", split)
    expected = contents(model)
    save_folder(tmp_path / "hf", expected.items(), like=model)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert same(contents(tmp_path / "hf"), expected)
    assert same(dict(load_reference(tmp_path / "hf").named_parameters()), expected)


def test_a_new_folder_replaces_the_old_one_whole(model, tmp_path):
    folder = tmp_path / "hf"
    save_folder(folder, [("old", torch.ones(2))], like=model)
    (folder / "left.txt").write_text("of the old one")
    save_folder(folder, [("new", torch.zeros(2))], like=model)
    assert same(contents(folder), {"new": torch.zeros(2)})
    assert not (folder / "left.txt").exists()


class Interrupted(Exception):
    pass


def test_a_save_that_fails_leaves_the_old_folder(model, tmp_path):
    folder = tmp_path / "hf"
    save_folder(folder, contents(model).items(), like=model)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def weights():
        yield "model.norm.weight", torch.zeros(64)
        raise Interrupted

    with pytest.raises(Interrupted):
        save_folder(folder, weights(), like=model)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("function", ["save_file", "split_torch_state_dict_into_shards"])
def test_a_first_save_that_fails_leaves_no_folder_and_does_not_stop_the_next(model, tmp_path, monkeypatch, function):
    def fail(*arguments, **keywords):
        raise Interrupted

    folder = tmp_path / "hf"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(hf, function, fail)
        save_folder(folder, [("a", torch.ones(2))], like=model)
    assert not folder.exists()
    (tmp_path / "hf.partial" / "left.safetensors").write_text("of the one that failed")
    save_folder(folder, [("a", torch.ones(2))], like=model)
    assert not (folder / "left.safetensors").exists() and not (tmp_path / "hf.partial").exists()


def test_saving_over_the_model_itself(model, tmp_path):
    """The configuration and the tokenizer are copied before the old folder goes."""
    folder = tmp_path / "own"
    shutil.copytree(model, folder)
    expected = {name: value + 1 for name, value in contents(folder).items()}
    save_folder(folder, expected.items(), like=folder)
    assert same(contents(folder), expected)
    assert read_shape(folder) == read_shape(model)
