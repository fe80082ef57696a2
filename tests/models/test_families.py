"""Compare the descriptors with transformers, and the guide with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.models import read_shape
from megatron_rapo.models.families import FAMILIES
from megatron_rapo.models.parameter_map import hf_shapes
from tests.tiny_models import load_reference, save_tiny_model

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "adding_a_model.md"
TRANSFORMERS_NAMES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral"}
MATHEMATICS = {  # architecture: bias of q, k and v; normalised queries and keys
    "Qwen2ForCausalLM": (True, False),
    "Qwen3ForCausalLM": (False, True),
    "LlamaForCausalLM": (False, False),
    "MistralForCausalLM": (False, False),
}


def test_biases_and_norms_by_family() -> None:
    assert {name: (family.qkv_bias, family.qk_norm) for name, family in FAMILIES.items()} == MATHEMATICS


@pytest.mark.parametrize("name", TRANSFORMERS_NAMES)
def test_the_tensors_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """Heads may be wider than hidden_size / num_heads."""
    options: dict[str, Any] = {"head_dim": None if name == "qwen2" else 64, "num_heads": 4, "num_kv_heads": 2}
    folder = save_tiny_model(tmp_path, tied=False, family=name, hidden_size=128, **options)
    shape = read_shape(folder)
    assert shape.architecture == f"{TRANSFORMERS_NAMES[name]}ForCausalLM"
    model = load_reference(folder)
    assert hf_shapes(shape) == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    matrices = [t for name, t in model.named_parameters() if t.dim() == 2 and "embed_tokens" not in name]
    assert shape.matrix_weights == sum(matrix.numel() for matrix in matrices)


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "mistral", tied=False, family="mistral", head_dim=64)


def edit(folder: Path, changes: dict[str, Any], *, without: str | None = None) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    config.pop(without, None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_mistral_without_a_window_is_read(mistral: Path) -> None:
    assert json.loads((mistral / "config.json").read_text())["sliding_window"] is None
    shape = read_shape(mistral)
    assert (shape.head_dim, shape.q_size, shape.qkv_size, shape.gate_up_size) == (64, 128, 256, 256)


@pytest.mark.parametrize("window", [4096, 0, False])
def test_a_mistral_with_a_sliding_window_is_refused(mistral: Path, window: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        read_shape(edit(mistral, {"sliding_window": window}))
    assert str(refused.value) == (
        f"model.path={mistral}: sliding_window={window} is not implemented and would be trained wrongly; use a model "
        "with sliding_window in [None]."
    )


def test_a_mistral_that_leaves_the_window_to_the_default_is_refused(mistral: Path) -> None:
    """Then transformers, and so vLLM, uses 4096."""
    with pytest.raises(ConfigError, match="sliding_window=4096 is not implemented"):
        read_shape(edit(mistral, {}, without="sliding_window"))


@pytest.mark.parametrize("window", [4096, 0, False])
def test_a_llama_with_a_sliding_window_is_refused(tmp_path: Path, window: Any) -> None:
    """vLLM would use it, transformers and Megatron would not. A file without the key, or with null, is read."""
    llama = save_tiny_model(tmp_path / "llama", tied=False, family="llama")
    assert "sliding_window" not in json.loads((llama / "config.json").read_text())
    for changes in ({}, {"sliding_window": None}):
        assert read_shape(edit(llama, changes)).architecture == "LlamaForCausalLM"
    with pytest.raises(ConfigError) as refused:
        read_shape(edit(llama, {"sliding_window": window, "use_sliding_window": False}))
    assert str(refused.value) == (
        f"model.path={llama}: sliding_window={window} is not implemented and would be trained wrongly; use a model "
        "with sliding_window in [None]."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama_4_scaling": {"beta": 0.1}}, "llama_4_scaling={'beta': 0.1}"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type=yarn"),
    ],
)
def test_other_mistrals_are_refused(mistral: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_shape(edit(mistral, changes))
    assert str(refused.value).startswith(f"model.path={mistral}: {said} is not implemented and would be trained wrong")


def test_null_means_the_default_unless_it_is_implemented(mistral: Path) -> None:
    assert read_shape(edit(mistral, {"hidden_act": None, "attention_bias": None})).architecture == "MistralForCausalLM"


def test_the_guide_shows_the_code_and_names_files_that_exist() -> None:
    text, source = GUIDE.read_text(), (ROOT / "megatron_rapo" / "models" / "families.py").read_text()
    [descriptor] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Family(" in block]
    assert descriptor in source
    named = set(re.findall(r"\b(?:megatron_rapo|tests)/[\w/]+\.py\b", text))
    assert len(named) > 5 and [path for path in sorted(named) if not (ROOT / path).is_file()] == []
