r"""Compute, instead of sampling, a model's chance of the right answer and its distance from the base.

A completion of this study is `\boxed{answer}` and the end of the text, so the chance that one sample is right is the
product of its tokens' probabilities, and the expected pass@k is 1 - (1 - p)^k: no sampling noise, and it takes seconds.
(Completions with the same answer in another form, 0492 for 492, are left out.) It chooses settings, and checks the
sampled results.

Shapes: B sequences, L tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLES_FOR_KL = 4
"""Completions of each problem along which the KL is computed."""
MAX_NEW_TOKENS = 8


class Model:
    """A Hugging Face model folder on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)

    @torch.inference_mode()
    def logprobs_BLV(self, tokens_BL: Tensor) -> Tensor:
        """Return log-probabilities of every token but the first, given those before it."""
        logprobs_BLV: Tensor = self.model(input_ids=tokens_BL[:, :-1]).logits.log_softmax(dim=-1)
        return logprobs_BLV

    def encode(self, rows: Sequence[dict[str, str]], completions: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Return tokens of prompt, completion and end of text, int64 [B, L], and the completion's mask, bool [B, L]."""
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        prompts = self.tokenizer([f"{row['problem']}\n" for row in rows])["input_ids"]
        endings = self.tokenizer(list(completions))["input_ids"]
        sequences = [[*prompt, *ending, eos] for prompt, ending in zip(prompts, endings, strict=True)]
        tokens_BL = torch.full((len(rows), max(map(len, sequences))), pad)
        completion_BL = torch.zeros_like(tokens_BL, dtype=torch.bool)
        for index, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            tokens_BL[index, : len(sequence)] = torch.tensor(sequence)
            completion_BL[index, len(prompt) : len(sequence)] = True
        return tokens_BL, completion_BL

    @torch.inference_mode()
    def sample(self, rows: Sequence[dict[str, str]]) -> list[str]:
        """Sample one completion of each problem at temperature 1."""
        prompts = [f"{row['problem']}\n" for row in rows]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        output_BL = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
        )
        completions: list[str] = self.tokenizer.batch_decode(
            output_BL[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return completions


def answer_logprobs(model: Model, rows: Sequence[dict[str, str]]) -> list[float]:
    """Return the log-probability of each problem's right completion, in nats."""
    tokens_BL, completion_BL = model.encode(rows, (rf"\boxed{{{row['answer']}}}" for row in rows))
    logprobs_BL = model.logprobs_BLV(tokens_BL).gather(-1, tokens_BL[:, 1:, None])[..., 0]
    sums: list[float] = logprobs_BL.masked_fill(~completion_BL[:, 1:], 0.0).sum(dim=1).tolist()
    return sums


def kl(sampled_from: Model, other: Model, rows: Sequence[dict[str, str]]) -> float:
    """Return KL(sampled_from || other) of whole completions, nats: exact over the vocabulary, along samples."""
    total = 0.0
    for _ in range(SAMPLES_FOR_KL):
        tokens_BL, completion_BL = sampled_from.encode(rows, sampled_from.sample(rows))
        from_BLV, other_BLV = sampled_from.logprobs_BLV(tokens_BL), other.logprobs_BLV(tokens_BL)
        kl_BL = (from_BLV.exp() * (from_BLV - other_BLV)).sum(dim=-1)
        total += float(kl_BL.masked_fill(~completion_BL[:, 1:], 0.0).sum(dim=1).mean())
    return total / SAMPLES_FOR_KL


def main() -> None:
    parser = argparse.ArgumentParser(description="Chances of the right answers, and distance from the base.")
    parser.add_argument("model", type=Path, help="Hugging Face model folder")
    parser.add_argument("problems", type=Path, help="JSON lines of id, problem, answer")
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, base = Model(arguments.model), Model(arguments.base)
    kinds: dict[str, list[dict[str, str]]] = {}
    for line in arguments.problems.read_text().splitlines():
        row = json.loads(line)
        kinds.setdefault(row["id"].rpartition("-")[0], []).append(row)
    measured = {
        "answer_logprobs": {kind: [round(p, 3) for p in answer_logprobs(model, rows)] for kind, rows in kinds.items()},
        "kl_from_base": {kind: round(kl(base, model, rows), 4) for kind, rows in kinds.items()},
        "kl_to_base": {kind: round(kl(model, base, rows), 4) for kind, rows in kinds.items()},
    }
    arguments.output.write_text(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
