"""What is measured: every precision that a machine has, a run's settings, a rollout of full micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rapo.config import Config
from megatron_rapo.fp8_recipes import FP8_RECIPES
from megatron_rapo.preflight.checks import check_machine
from megatron_rapo.types import TrainingSequence

TIMEOUT_S = 300.0
TORCH = "torch"
TRANSFORMER_ENGINE = "transformer_engine"
PRECISIONS: dict[str, dict[str, Any]] = {
    TORCH: {"model": {"layers": TORCH}},
    TRANSFORMER_ENGINE: {"model": {"layers": TRANSFORMER_ENGINE}},
    **{
        f"fp8 {recipe}": {
            "model": {"layers": TRANSFORMER_ENGINE},
            "precision": {"fp8": "hybrid", "fp8_recipe": recipe},
        }
        for recipe in FP8_RECIPES
    },
}
"""Ways to train in bfloat16, by name: sections of a configuration."""


def precisions() -> list[str]:
    """Those of PRECISIONS that this machine's GPU has; without one torch's layers."""
    if not torch.cuda.is_available():
        return [TORCH]
    capability = torch.cuda.get_device_capability()
    fp8 = [f"fp8 {name}" for name, recipe in FP8_RECIPES.items() if capability >= recipe.capability]
    return [TORCH, TRANSFORMER_ENGINE, *fp8]


def run_config(model: Path, precision: str, /, *, tokens_per_microbatch: int, **sections: dict[str, Any]) -> Config:
    """Return the configuration of a run that trains `model`. Its data and folder are never used."""
    settings: dict[str, dict[str, Any]] = {
        "data": {"train": model / "none.jsonl", "max_prompt_tokens": 16},
        "batch": {"prompts_per_step": 8, "tokens_per_microbatch": tokens_per_microbatch},
        "rollout": {"max_completion_tokens": 16},
        "run": {"folder": model / "run", "steps": 100, "timeout_s": TIMEOUT_S},
    }
    for section, fields in [*sections.items(), *PRECISIONS[precision].items(), ("model", {"path": model})]:
        settings[section] = settings.get(section, {}) | fields
    config = Config.model_validate(settings)
    check_machine(config)
    return config


def sequences(vocab_size: int, *, count: int, length: int, tokens: int | None = None) -> list[TrainingSequence]:
    """Return random sequences of the same length, which fill micro-batches, of the first `tokens` (None: all).

    All are better than their group: training makes them more likely. What the engine says of a token is what a model
    would that knows nothing.
    """
    rng, prompt_length = np.random.default_rng(0), 8
    unknowing = np.full(length - prompt_length, -np.log(vocab_size), dtype=np.float32)
    return [
        TrainingSequence(
            token_ids=rng.integers(0, tokens or vocab_size, length).astype(np.int32),
            prompt_length=prompt_length,
            engine_logprobs=unknowing,
            advantage=1.0,
            phi=0.9,
            reward=float(i % 2),
        )
        for i in range(count)
    ]
