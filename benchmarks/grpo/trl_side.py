"""TRL's GRPOTrainer taking the steps of a case, on each of its processes.

    python -m benchmarks.grpo.trl_side WORK OUTPUT          (both JSON; torchrun starts several)

What is not TRL's own: the lengths of completions, and clocks, which read the time when TRL says that a step or a part
of one is over.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.grpo.case import KL_COEFFICIENT, LEARNING_RATE, PROMPT_TOKENS, Work, reward
from benchmarks.grpo.clock import StepClock, write_steps
from benchmarks.grpo.trl_variants import VARIANTS
from benchmarks.grpo.variant import Variant

GENERATIONS = ("transformers.generate", "transformers.generate_batch", "vLLM.generate")
"""What TRL calls its ways to sample, in its own profile."""


class PrescribedLengths:
    """A logits processor: row i ends with its `lengths[i]`-th token and not before, so that TRL sees it end itself.

    All prompts are equally long.
    """

    def __init__(self, lengths: Sequence[int], eos: int) -> None:
        self._lengths, self._eos = torch.tensor(lengths), eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        last = self._lengths == input_ids.shape[1] - PROMPT_TOKENS + 1
        scores[:, self._eos] = -torch.inf
        scores[last] = -torch.inf
        scores[last, self._eos] = 0.0
        return scores


class Profile(StepClock):
    """Steps, and the seconds of what TRL profiles in each."""

    def __init__(self) -> None:
        super().__init__()
        self._profiles: list[dict[str, float]] = [{}]

    def step_ended(self) -> None:
        super().step_ended()
        self._profiles.append({})

    def add(self, what: str, seconds: float) -> None:
        name = what.partition(".")[2]  # without the trainer's
        self._profiles[-1][name] = self._profiles[-1].get(name, 0.0) + seconds

    def parts_s(self) -> list[dict[str, float]]:
        return [parts_of(each, step_s) for each, step_s in zip(self._profiles[1:], self.wall_s, strict=False)]


def parts_of(profile: dict[str, float], step_s: float) -> dict[str, float]:
    """TRL samples, calculates rewards and scores in `_prepare_inputs`; the rest is forward, backward and update."""
    rollout = sum(profile.get(name, 0.0) for name in GENERATIONS)
    prepare, rewards = profile["_prepare_inputs"], profile["_calculate_rewards"]
    score = prepare - rollout - rewards
    return {"rollout": rollout, "score": score, "train": step_s - prepare, "other": rewards}


def train(work: Work, variant: Variant) -> tuple[Profile, list[int]]:
    """Train, and return the profile and each step's number of sampled tokens on all processes."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    case, profile = work.case, Profile()
    sampled: list[int] = []

    class AtStepEnd(TrainerCallback):
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            profile.step_ended()
            mean_length = trainer._metrics["train"]["completions/mean_length"][-1]  # over all processes
            sampled.append(round(mean_length * len(case.completion_tokens)))

    def rewards(completions: Sequence[str], **_: Any) -> list[float]:
        return [reward(completion) for completion in completions]

    profiling = importlib.import_module("trl.extras.profiling")
    # What gives TRL's profile to the services that it is told of.
    profiling.ProfilingContext._log_metrics = lambda context, seconds: profile.add(context.name, seconds)
    tokenizer = AutoTokenizer.from_pretrained(work.model, trust_remote_code=False)
    trainer = importlib.import_module("trl").GRPOTrainer(
        model=str(work.model),
        reward_funcs=rewards,
        args=grpo_config(work, variant),
        train_dataset=Dataset.from_dict({"prompt": case.problems(work.vocab_size)}),
        processing_class=tokenizer,
        callbacks=[AtStepEnd()],
    )
    prescribe(trainer, case.completion_tokens, tokenizer.eos_token_id)
    trainer.train()
    return profile, sampled


def grpo_config(work: Work, variant: Variant) -> Any:
    case = work.case
    microbatches = variant.settings.get("gradient_accumulation_steps", 1)
    settings: dict[str, Any] = {
        "output_dir": str(work.folder / "trl"),
        "use_cpu": True,
        "max_steps": work.steps,
        "per_device_train_batch_size": len(case.completion_tokens) // (variant.processes * microbatches),
        "num_generations": case.completions,
        "max_completion_length": case.longest,
        "temperature": 1.0,
        "beta": KL_COEFFICIENT,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "bf16": False,
        "model_init_kwargs": {"dtype": "float32"},
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return importlib.import_module("trl").GRPOConfig(**(settings | dict(variant.settings)))


def prescribe(trainer: Any, lengths: Sequence[int], eos: int) -> None:
    """Give the completions of this process the prescribed `lengths`, with either way of sampling."""
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    rank, rows = trainer.accelerator.process_index, len(lengths) // trainer.accelerator.num_processes
    mine = lengths[rank * rows : (rank + 1) * rows]
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.generate = functools.partial(model.generate, logits_processor=[PrescribedLengths(mine, eos)])
    add_request = ContinuousBatchingManager.add_request

    def add_prescribed(manager: Any, request_id: str, **request: Any) -> Any:
        length = mine[int(request_id.removeprefix("req_")) % rows]
        request |= {"max_new_tokens": length, "eos_token_id": -1}  # no token is
        return add_request(manager, request_id=request_id, **request)

    ContinuousBatchingManager.add_request = add_prescribed


def main(work: Path, output: Path) -> None:
    given = Work.from_json(work.read_text())
    profile, sampled = train(given, VARIANTS[given.variant])
    # TRL gives its profile to services on the first process only.
    rank = int(os.environ.get("RANK", "0"))
    write_steps(output, rank, profile, profile.parts_s() if rank == 0 else [], sampled)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
