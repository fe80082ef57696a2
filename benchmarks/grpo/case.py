"""What both sides of a GRPO step do: a model, prompts, the length of every completion, the settings that they share.

P prompts, G completions of each; a rollout is P * G completions, on which one optimizer step is taken.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.models import CPU_SIZES
from megatron_rapo.types import Completion, Problem, Verdict

PROMPT_TOKENS = 32  # of every prompt
LEARNING_RATE = 1e-6
KL_COEFFICIENT = 0.04  # of "k3" to the reference, which both sides score at every step
TAIL = 8  # times the median that the longest completion has, where lengths are log-normal
FIRST_WORD = 2  # token numbers below are the tokenizer's own


@dataclass(frozen=True, kw_only=True)
class Case:
    model: str  # its size, a key of models.CPU_SIZES
    lengths: str  # "equal" or "log-normal"
    prompts: int
    completions: int  # of each prompt
    median: int  # of the completions' lengths, tokens

    @property
    def name(self) -> str:
        return f"{self.model}, {self.lengths}"

    @property
    def completion_tokens(self) -> list[int]:
        """[P * G]: how long each completion is, tokens. The same at every step."""
        count = self.prompts * self.completions
        return [self.median] * count if self.lengths == "equal" else log_normal(count, self.median)

    @property
    def sampled_tokens(self) -> int:
        """Return the tokens that both sides sample in a step."""
        return sum(self.completion_tokens)

    @property
    def longest(self) -> int:
        return max(self.completion_tokens)

    def problems(self, vocab_size: int) -> list[str]:
        """Return [P] texts of PROMPT_TOKENS words each, for the tokenizer of models.py."""
        words = np.random.default_rng(0).integers(FIRST_WORD, vocab_size, (self.prompts, PROMPT_TOKENS))
        return [" ".join(f"<{word}>" for word in row) for row in words]


LENGTHS = ("equal", "log-normal")
CASES = (
    Case(model="1M", lengths="equal", prompts=8, completions=8, median=64),
    Case(model="1M", lengths="log-normal", prompts=8, completions=8, median=64),
    Case(model="10M", lengths="equal", prompts=8, completions=8, median=64),
    Case(model="10M", lengths="log-normal", prompts=8, completions=8, median=64),
    Case(model="135M", lengths="equal", prompts=4, completions=4, median=64),
    Case(model="135M", lengths="log-normal", prompts=4, completions=4, median=16),
)


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Add options that select from CASES."""
    parser.add_argument("--model", nargs="+", choices=CPU_SIZES, default=list(CPU_SIZES), metavar="SIZE")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS), metavar="KIND")
    parser.add_argument("--quick", action="store_true", help="four completions of few tokens, to try the benchmark")


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    chosen = [case for case in CASES if case.model in options.model and case.lengths in options.lengths]
    return [replace(case, prompts=2, completions=2, median=4) for case in chosen] if options.quick else chosen


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the processes of one side are given, for one turn."""

    case: Case
    folder: Path  # with `model/` in it
    variant: str  # by name, of the side
    steps: int

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def vocab_size(self) -> int:
        return int(json.loads((self.model / "config.json").read_text())["vocab_size"])

    @property
    def problems(self) -> Path:
        """Return the path of the data file with the case's problems."""
        return self.folder / "problems.jsonl"

    def write_problems(self) -> None:
        rows = [json.dumps({"problem": text, "answer": "1"}) for text in self.case.problems(self.vocab_size)]
        self.problems.write_text("\n".join(rows) + "\n")

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @staticmethod
    def from_json(text: str) -> Work:
        fields = json.loads(text)
        case, folder = Case(**fields.pop("case")), Path(fields.pop("folder"))
        return Work(case=case, folder=folder, **fields)


def log_normal(count: int, median: int) -> list[int]:
    """`count` lengths around `median`, the longest TAIL times as long, in an order of no meaning.

    They are the distribution's quantiles, so that none depends on luck.
    """
    normal = statistics.NormalDist()
    quantiles = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    spread = math.log(TAIL) / quantiles[-1]
    lengths = [max(1, round(median * math.exp(spread * quantile))) for quantile in quantiles]
    return [int(length) for length in np.random.default_rng(0).permutation(lengths)]


def reward(text: str) -> float:
    """Return a cheap reward that can be learned: 1 for an odd number of characters, else 0."""
    return float(len(text) % 2)


def odd_text(problem: Problem, completion: Completion, verdict: Verdict) -> float:
    """`reward`, as our configuration names it."""
    return reward(completion.text)
