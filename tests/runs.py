"""Configurations and recorded rollouts for tests that train a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rapo.config import Config
from megatron_rapo.types import TrainingSequence
from tests.models import load_reference


def tiny_config(model: Path, folder: Path, /, **sections: dict[str, Any]) -> Config:
    """A valid configuration around `model`; `sections` replace single fields."""
    settings: dict[str, dict[str, Any]] = {
        "model": {"path": model},
        "data": {"train": folder / "train.jsonl", "template": "plain", "max_prompt_tokens": 32},
        "batch": {"prompts_per_step": 4, "completions_per_prompt": 4, "tokens_per_microbatch": 128},
        "algorithm": {"alpha": 0.1, "beta": 0.01, "phi_min": 0.5},
        "rollout": {"max_completion_tokens": 48, "kv_cache_mib": 32, "max_concurrent": 32},
        "optimizer": {"lr": 1e-3},
        "precision": {"dtype": "float32"},
        "run": {"folder": folder, "steps": 4, "timeout_s": 60.0},
    }
    for section, fields in sections.items():
        settings[section] = settings.get(section, {}) | fields
    return Config.model_validate(settings)


def recorded_rollout(model: Path, count: int = 12, seed: int = 0) -> list[TrainingSequence]:
    """`count` random sequences with the log-probabilities that transformers gives their tokens, slightly disturbed."""
    rng, reference = np.random.default_rng(seed), load_reference(model)
    sequences = []
    for _ in range(count):
        length = int(rng.integers(8, 48))
        prompt_length = int(rng.integers(1, 7))
        token_ids = rng.integers(3, reference.config.vocab_size, length).astype(np.int32)
        logp = token_log_probs(reference, token_ids)[prompt_length - 1 :]
        sequences.append(
            TrainingSequence(
                token_ids=token_ids,
                prompt_length=prompt_length,
                engine_logprobs=(logp + rng.normal(0, 0.05, len(logp))).astype(np.float32),
                advantage=float(rng.normal(1.0, 0.5)),
                phi=float(rng.uniform(0.5, 1.0)),
                reward=0.0,
            )
        )
    return sequences


@torch.no_grad()
def token_log_probs(reference: torch.nn.Module, token_ids: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """[N - 1] log softmax(scale * logits) of each next token by transformers."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    logp = (scale * reference(ids[None]).logits[0, :-1]).log_softmax(-1)
    return logp.gather(1, ids[1:, None])[:, 0].numpy()
