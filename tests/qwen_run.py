"""A run of Qwen2.5-7B, of whose folder there is the config.json alone."""

from __future__ import annotations

import json
from pathlib import Path

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


def write_run(folder: Path) -> Path:
    """Write a configuration file and the model's config.json into `folder`. Returns the file."""
    (folder / "config.json").write_text(json.dumps(QWEN2_5_7B))
    path = folder / "run.toml"
    path.write_text(RUN.format(model=folder))
    return path
