"""The command line: what is printed, and the exit status. tests/convert has what it is made of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_rapo.cli import main
from tests.tiny_models import save_tiny_model

TINY = Path(__file__).parents[2] / "examples/tiny/model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "hf", tied=True, num_kv_heads=2)


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "megatron"
    options = ["--tensor", "2", "--pipeline", "2", "--processes", "2"]
    assert main(["convert", "hf-to-megatron", str(model), str(target), *options]) == 0
    return target


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def test_there_and_back(model: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reshard", converted, tmp_path / "anew", "--tensor", 1) == 0
    assert run("megatron-to-hf", tmp_path / "anew", tmp_path / "hf") == 0
    assert run("verify", model, tmp_path / "hf") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'anew'}: the same checkpoint, cut up for 1 x 1 ranks",
        f"{tmp_path / 'hf'}: a Hugging Face folder",
        f"{model} and {tmp_path / 'hf'} are the same bit by bit: 26 tensors",
    ]


def test_verify_names_what_differs(
    model: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][3] += 0.25
    weights["model.layers.0.mlp.up_proj.weight"][5, :2] -= 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert run("verify", converted, other) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{converted} and {other} differ in 2 of 26 tensors; the worst of them:"
    rows = [line.replace("│", " ").split() for line in lines if "weight" in line]
    assert rows == [
        ["model.layers.0.mlp.up_proj.weight", "0.5", "2", "of", "8,192"],
        ["model.norm.weight", "0.25", "1", "of", "64"],
    ]
    assert run("verify", converted, other, "--tolerance", 0.3) == 1
    assert "differ in 1 of 26 tensors" in capsys.readouterr().out
    assert run("verify", converted, other, "--tolerance", 0.6) == 0
    assert "are the same within 0.6: 26 tensors" in capsys.readouterr().out


def test_verify_by_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare the tiny model, which has a tokenizer, with itself and with one changed number."""
    assert run("hf-to-megatron", TINY, tmp_path / "megatron", "--pipeline", 2) == 0
    capsys.readouterr()
    assert run("verify", TINY, tmp_path / "megatron", "--logits") == 0
    same, logits = capsys.readouterr().out.splitlines()
    assert same.endswith("the same bit by bit: 50 tensors")
    assert re.match(r"logits after \d\d+ tokens of text, in float32: they differ by 0 at most, ", logits)
    shutil.copytree(TINY, tmp_path / "other")
    tensors = load_file(TINY / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.01
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    text = ("--text", "7 + 5 = ")
    assert run("verify", TINY, tmp_path / "other", "--tolerance", 1.0, "--logits", *text) == 0
    found = re.search(r"they differ by (\S+) at most, their distributions by (\S+) nats", capsys.readouterr().out)
    assert found and 1e-4 < float(found[1]) < 1.0 and 0 < float(found[2]) < 0.01
    assert run("verify", TINY, tmp_path / "other", "--tolerance", 1e-9, "--logits", *text) == 1


def test_inspect(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", converted) == 0
    shown = capsys.readouterr().out
    for words in ("Qwen2ForCausalLM", "tensor 2 x pipeline 2 x virtual_pipeline 1", "float32 (26 tensors)"):
        assert words in shown
    assert "model.layers.1.self_attn.k_proj.bias" in shown and "model.norm.weight" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["hf-to-megatron", "{model}", "{new}", "--tensor", "3"],
            "--tensor 3: does not divide the model's num_heads",
        ),
        (["hf-to-megatron", "{model}", "{new}", "--pipeline", "4"], "--pipeline 4 --virtual-pipeline 1: more chunks "),
        (["hf-to-megatron", "{model}", "{new}", "--virtual-pipeline", "2"], "--virtual-pipeline 2: does nothing with "),
        (["hf-to-megatron", "{model}", "{converted}"], "{converted}: exists already; name another folder, "),
        (["hf-to-megatron", "{new}", "{new}2"], "model.path={new}: no such folder; "),
        (["megatron-to-hf", "{model}", "{new}"], "{model}: has no .metadata, no common.pt, no metadata.json, "),
        (["inspect", "{new}"], "model.path={new}: no such folder; "),
    ],
)
def test_what_cannot_be_done(
    model: Path,
    converted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"model": model, "converted": converted, "new": tmp_path / "new"}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    assert capsys.readouterr().err.startswith(f"error: {message.format(**places)}")
    assert not (tmp_path / "new").exists()


def test_checkpoints_of_different_models(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_tiny_model(tmp_path / "other", tied=False, num_kv_heads=2)
    assert run("verify", model, other) == 2
    assert capsys.readouterr().err == (
        "error: lm_head.weight: missing in one and of shape [128, 64] in the other; they are checkpoints of different "
        "models.\n"
    )


def test_a_number_that_is_not_one(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((model / "config.json").read_bytes())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert run("verify", tmp_path / "a", tmp_path / "b") == 0  # the same bits
    assert run("verify", tmp_path / "a", model) == 1
    assert "inf" in capsys.readouterr().out


def test_a_checkpoint_of_another_model_than_config_json_describes(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of it would be ignored. Padding of the vocabulary does not make another model."""
    like = shutil.copytree(converted / "hf", tmp_path / "like")
    config = json.loads((like / "config.json").read_text())
    fc1, qkv = "decoder.layers.mlp.linear_fc1.weight", "decoder.layers.self_attention.linear_qkv"
    promises = "but config.json promises"
    for changes, said in (
        ({"intermediate_size": 64}, f"{fc1} has shape [2, 256, 64], {promises} [2, 128, 64]; name the folder of "),
        ({"num_hidden_layers": 1}, f"{qkv}.layer_norm_weight has shape [2, 64], {promises} [1, 64]; name the folder"),
        ({"vocab_size": 129}, f"embedding.word_embeddings.weight has shape [128, 64], {promises} [129, 64]; name the"),
        ({"tie_word_embeddings": False}, "tensor output_layer.weight is missing; it is not a checkpoint of this model"),
        ({"architectures": ["LlamaForCausalLM"]}, f"has {qkv}.bias, which config.json does not promise, and ignoring"),
    ):
        (like / "config.json").write_text(json.dumps(config | changes))
        for arguments in (("inspect", converted), ("megatron-to-hf", converted, tmp_path / "out")):
            assert run(*arguments, "--like", like) == 2
            assert capsys.readouterr().err.startswith(f"error: {converted}: {said}")
    (like / "config.json").write_text(json.dumps(config | {"vocab_size": 127}))
    assert run("inspect", converted, "--like", like) == 0
    assert re.search(r"embed_tokens.weight +│ \[127, 64\]", capsys.readouterr().out)


def test_a_name_that_is_markup(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(model, tmp_path / "[red]a[/]")
    assert run("inspect", folder) == 0
    assert "[red]a[/]" in "".join(capsys.readouterr().out.split())
