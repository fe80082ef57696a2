"""Qwen2.5-7B's shape, and a run of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_rapo.config import Config
from megatron_rapo.config.file import load_config
from megatron_rapo.hf import ModelShape, read_shape

QWEN2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
RUN = """
[model]
path = "{model}"
[data]
train = "train.jsonl"
max_prompt_tokens = 1024
[batch]
prompts_per_step = 128
completions_per_prompt = 8
optimizer_steps_per_rollout = 4
tokens_per_microbatch = 8192
[parallel]
tensor = 4
sequence = true
[rollout]
max_completion_tokens = 3072
kv_cache_mib = 16384
[optimizer]
distributed = true
[run]
folder = "runs/7b"
steps = 100
"""


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file, with the model's config.json alone where it says."""
    folder = tmp_path_factory.mktemp("qwen2.5-7b")
    (folder / "config.json").write_text(json.dumps(QWEN2_5_7B))
    path = folder / "run.toml"
    path.write_text(RUN.format(model=folder))
    return path


@pytest.fixture(scope="session")
def model(run_file: Path) -> ModelShape:
    return read_shape(run_file.parent)


@pytest.fixture(scope="session")
def configured(run_file: Path) -> Callable[..., Config]:
    """configured("section.field=value", ...): the run with other settings."""
    return lambda *settings: load_config(run_file, settings)
