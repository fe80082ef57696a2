"""Configurations and recorded rollouts for tests that train a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rapo.config import Config
from megatron_rapo.types import TrainingSequence
from tests.tiny_models import load_reference


def tiny_config(model: Path, folder: Path, /, **sections: dict[str, Any]) -> Config:
    """A valid configuration around `model`; `sections` replace single fields."""
    settings: dict[str, dict[str, Any]] = {
        "model": {"path": model},
        "data": {"train": folder / "train.jsonl", "template": "plain", "max_prompt_tokens": 32},
        "batch": {"prompts_per_step": 4, "completions_per_prompt": 4, "tokens_per_microbatch": 128},
        "algorithm": {"alpha": 0.1, "beta": 0.01, "phi_min": 0.5},
        "rollout": {"max_completion_tokens": 48, "kv_cache_mib": 32, "max_concurrent": 32},
        "optimizer": {"lr": 1e-3},
        "reward": {"budget_s": 30.0},
        "precision": {"dtype": "float32"},
        "run": {"folder": folder, "steps": 4, "timeout_s": 1200.0},
    }
    for section, fields in sections.items():
        settings[section] = settings.get(section, {}) | fields
    return Config.model_validate(settings)


def recorded_rollout(
    model: Path, count: int = 12, seed: int = 0, *, temperature: float = 1.0, by_sequence: bool = False
) -> list[TrainingSequence]:
    """`count` random sequences with the log-probabilities that transformers gives their tokens, slightly disturbed.

    The third takes no part in the loss. Of every third, the first among them, half the tokens are of earlier weights.
    `by_sequence` weighs tokens such that all others count alike.
    """
    rng, reference = np.random.default_rng(seed), load_reference(model)
    sequences = []
    for index in range(count):
        length = int(rng.integers(8, 48))
        prompt_length = int(rng.integers(1, 7))
        token_ids = rng.integers(3, reference.config.vocab_size, length).astype(np.int32)
        logp = token_log_probs(reference, token_ids, 1 / temperature)[prompt_length - 1 :]
        sequences.append(
            TrainingSequence(
                token_ids=token_ids,
                prompt_length=prompt_length,
                engine_logprobs=(logp + rng.normal(0, 0.05, len(logp))).astype(np.float32),
                advantage=float(rng.normal(1.0, 0.5)),
                phi=float(rng.uniform(0.5, 1.0)),
                reward=float(rng.integers(2)),
                num_stale=len(logp) // 2 if index % 3 == 0 else 0,
                in_loss=index != 2,
            )
        )
    lengths = [len(s.engine_logprobs) for s in sequences if s.in_loss]
    mean = sum(lengths) / len(lengths)
    return [replace(s, weight=mean / len(s.engine_logprobs)) for s in sequences] if by_sequence else sequences


def token_log_probs(reference: torch.nn.Module, token_ids: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """[N - 1] log softmax(scale * logits) of each next token by transformers."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    return log_probs(reference, token_ids, scale).gather(1, ids[1:, None])[:, 0].numpy()


@torch.no_grad()
def log_probs(reference: torch.nn.Module, token_ids: np.ndarray, scale: float = 1.0) -> torch.Tensor:
    """[N - 1, V] log softmax(scale * logits) that transformers predicts the next tokens with."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    return (scale * reference(ids[None]).logits[0, :-1]).log_softmax(-1)
