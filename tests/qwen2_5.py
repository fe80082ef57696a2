"""The shapes of real models, as their config.json has them."""

from __future__ import annotations

from typing import Any

from megatron_rapo.models import ModelShape

_COMMON: dict[str, Any] = {
    "architecture": "Qwen2ForCausalLM",
    "head_dim": 128,
    "norm_eps": 1e-6,
    "rope_theta": 1e6,
}
QWEN2_5 = {
    "7B": ModelShape(
        num_layers=28,
        hidden_size=3584,
        ffn_hidden_size=18944,
        num_heads=28,
        num_kv_heads=4,
        vocab_size=152064,
        tied=False,
        max_position=131072,
        **_COMMON,
    ),
    "3B": ModelShape(
        num_layers=36,
        hidden_size=2048,
        ffn_hidden_size=11008,
        num_heads=16,
        num_kv_heads=2,
        vocab_size=151936,
        tied=True,
        max_position=32768,
        **_COMMON,
    ),
}
