r"""Make the problems and the base model of one seed.

    PYTHONPATH=tools python -m examples.exploration_ceiling.make_base --output runs/exploration_ceiling/seed0 --seed 0

writes `train.jsonl`, `dev.jsonl` and `test.jsonl` (the same for every seed) and `base/`, a Qwen2 checkpoint in Hugging
Face format whose weights, and whose teacher's carelessness, come from the seed. study.py calls it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AddedToken, Qwen2ForCausalLM, Qwen2Tokenizer

from examples.exploration_ceiling.problems import make_splits, student_attempts, write_problems
from make_tiny_model import build_model as build_tiny_model
from make_tiny_model import build_tokenizer, encode_corpus, pretrain

SHARES = {"tiny": 0.15, "easy": 0.75, "hard": 0.1}
"""Of the student's attempts. Hard problems are rare: the base model's idea of them is vague."""
FORGETS = 0.5
"""Probability that the student forgets a carry."""
MAX_POSITIONS = 64
BOX = r"\boxed{"


def build_box_tokenizer() -> Qwen2Tokenizer:
    r"""Build a tokenizer with a token per character, and one for `\boxed{`, which begins every completion."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(BOX, normalized=False, special=False)])
    tokenizer.model_max_length = MAX_POSITIONS
    return tokenizer


def build_model(vocab_size: int) -> Qwen2ForCausalLM:
    """Build an untrained model of 0.45M parameters, fp32. Its weights come from torch's global generator."""
    return build_tiny_model(
        vocab_size, hidden_size=96, num_layers=3, num_heads=3, num_kv_heads=3, max_positions=MAX_POSITIONS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the problems and the base model of one seed.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the base model: its weights, what it is taught")
    parser.add_argument("--attempts", type=int, default=200_000, help="answers that the base model is taught")
    parser.add_argument("--judged", type=int, default=300, help="problems of each kind to develop on, and to test on")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    splits = make_splits(num_judged=arguments.judged)
    write_problems(output / "train.jsonl", {"easy": splits.rl_train})
    write_problems(output / "dev.jsonl", splits.dev)
    write_problems(output / "test.jsonl", splits.test)

    tokenizer = build_box_tokenizer()
    attempts = student_attempts(
        splits.taught, shares=SHARES, forgets=FORGETS, num_attempts=arguments.attempts, seed=arguments.seed
    )
    tokens_BL, labels_BL = encode_corpus(tokenizer, list(attempts))  # type: ignore[arg-type]  # reads .prompt alone
    model = build_model(vocab_size=len(tokenizer))
    pretrain(model, tokens_BL, labels_BL, batch_size=256, learning_rate=2e-3)
    model.save_pretrained(output / "base")
    tokenizer.save_pretrained(output / "base")


if __name__ == "__main__":
    main()
