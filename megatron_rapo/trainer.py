"""The training loop: prompts -> rollout -> verify -> advantages, phi -> score -> train -> reshard -> log.

One process per device runs all of it, in step with the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.algo import LossSums, group_advantages, linear_phi, rapo_loss
from megatron_rapo.checkpoints import CHECKPOINTS, checkpoint_folder
from megatron_rapo.config import AlgorithmConfig, Config
from megatron_rapo.data import EpochOrder
from megatron_rapo.evaluate import evaluate
from megatron_rapo.hf import save_folder
from megatron_rapo.mcore.checkpoint import load_checkpoint, save_checkpoint
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.metrics import reference_scalars, rollout_scalars, training_scalars
from megatron_rapo.monitor import TENSORBOARD_FOLDER, Monitor, Sample
from megatron_rapo.packing import PackedBatch
from megatron_rapo.rollout import Sampling
from megatron_rapo.sampling import Sampler, sampling_seed
from megatron_rapo.types import Group, Prompt, TrainingSequence


class Trainer:
    """A run. All methods are collective over the world."""

    def __init__(
        self,
        config: Config,
        *,
        policy: Policy,
        sampler: Sampler,
        monitor: Monitor,
        train_prompts: Sequence[Prompt],
        heldout_prompts: Sequence[Prompt] = (),
    ) -> None:
        self._config, self._policy, self._sampler, self._monitor = config, policy, sampler, monitor
        self._train_prompts, self._heldout_prompts = train_prompts, heldout_prompts
        self._order = EpochOrder(len(train_prompts), config.run.seed)
        self._loss = partial(batch_loss, settings=config.algorithm)
        self._step = 0
        self._scores: dict[str, dict[str, float]] = {}  # when -> {"pass@k": value}

    def restore(self, checkpoint: Path) -> None:
        """Go on from where `checkpoint` was written."""
        state = load_checkpoint(checkpoint, self._policy)
        self._step = state["step"]
        self._order.load_state_dict(state["order"])
        self._scores = state["scores"]

    def run(self) -> None:
        """Train to the configured number of steps, evaluating before and after where there are held-out problems."""
        total = self._config.run.steps
        self._reshard()
        if self._step == 0:
            self._evaluate("before")
        every = self._config.checkpoint.every_steps
        while self._step < total:
            self._train_one_step()
            if self._step == total or (every and self._step % every == 0):
                self._save()
        self._evaluate("after")
        self._finish()

    def _train_one_step(self) -> None:
        started, monitor, batch = time.perf_counter(), self._monitor, self._config.batch
        step = self._step + 1
        monitor.begin_step()
        prompts = [self._train_prompts[i] for i in self._order.take(batch.prompts_per_step)]

        with monitor.phase("rollout"):
            completions = self._sampler.complete(
                prompts,
                batch.completions_per_prompt,
                self._sampling,
                seed=partial(sampling_seed, self._config.run.seed, step),
            )
        with monitor.phase("verify"):
            groups = self._sampler.judge(prompts, completions)
        versions = {c.weight_version for g in groups for c in g.completions}
        assert versions == {self._step}, f"sampled from weights {versions}, training has reached {self._step}"
        sequences = to_sequences(groups, self._config)
        per_optimizer_step = batch.completions_per_optimizer_step
        with monitor.phase("score"):
            starts = range(0, len(sequences), per_optimizer_step)
            rollout = self._policy.score(
                [self._policy.pack(sequences[start : start + per_optimizer_step]) for start in starts]
            )
            gap = self._policy.logprob_gap([b for batches in rollout for b in batches])
        self._refuse_gap(gap["rollout/logprob_gap_mean"])
        with monitor.phase("train"):
            losses = [self._policy.train_step(batches, self._loss) for batches in rollout]
        self._step = step
        self._reshard()

        elapsed = time.perf_counter() - started
        sampled = sum(len(s.token_ids) - s.prompt_length for s in sequences)
        monitor.step(
            step,
            {
                **rollout_scalars(groups),
                **gap,
                **reference_scalars(sequences),
                **training_scalars(losses, self._config.algorithm),
                "throughput/tokens_per_s": sampled / elapsed,
                "seconds/step": elapsed,
            },
            samples(groups, self._config.monitor.sampled_completions),
        )

    @property
    def _sampling(self) -> Sampling:
        settings = self._config.rollout
        return Sampling(temperature=settings.temperature, max_completion_tokens=settings.max_completion_tokens)

    def _reshard(self) -> None:
        """The engine takes over the trainer's weights; their version is the number of steps trained."""
        with self._monitor.phase("reshard"):
            self._sampler.engine.load_weights(self._policy.hf_tensors(), version=self._step)

    def _refuse_gap(self, gap: float) -> None:
        """Stop where the engine plainly samples from another policy than the trainer's (a proof it is not)."""
        limit = self._config.reshard.max_logprob_gap
        if not gap <= limit:
            raise RuntimeError(
                f"reshard.max_logprob_gap={limit}: engine and trainer differ by {gap:.4g} nats per token on average "
                f"after step {self._step}, so the engine does not sample from this policy; if that is rounding "
                "(low precision), raise the limit."
            )

    def _evaluate(self, when: str) -> None:
        settings = self._config.evaluation
        if settings is None:
            return
        with self._monitor.phase("evaluate"):
            result = evaluate(self._sampler, self._heldout_prompts, settings, seed=self._config.run.seed)
        self._scores[when] = {f"pass@{k}": value for k, value in result.pass_at.items()}
        self._monitor.evaluation(self._step, {f"eval/{name}": value for name, value in self._scores[when].items()})
        scores = "  ".join(f"{name} {value:.3f}" for name, value in self._scores[when].items())
        self._monitor.message(f"held-out problems {when} training: {scores}")

    def _save(self) -> None:
        state = {"step": self._step, "order": self._order.state_dict(), "scores": self._scores}
        with self._monitor.phase("checkpoint"):
            save_checkpoint(self._config.run.folder / CHECKPOINTS, self._step, self._policy, state)

    def _finish(self) -> None:
        """Keep what was trained and say where it is."""
        folder, scores = self._config.run.folder, by_metric(self._scores)
        where = {"checkpoint": str(checkpoint_folder(folder / CHECKPOINTS, self._step))}
        if self._config.checkpoint.hf_export:
            with self._monitor.phase("checkpoint"):
                self._export(folder / "hf")
            where["hf_export"] = str(folder / "hf")
        if self._config.monitor.tensorboard:
            tensorboard = Path(sys.executable).with_name("tensorboard")
            where["tensorboard"] = f"{tensorboard} --logdir {folder / TENSORBOARD_FOLDER}"
        seconds = self._monitor.seconds()
        if dist.get_rank() == 0:
            summary = {**scores, **where, "seconds": seconds}
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if scores:
            rows = [[name, *(f"{value:.3f}" for value in when.values())] for name, when in scores.items()]
            self._monitor.table("held-out problems", ["", *next(iter(scores.values()))], rows)
        self._monitor.table("seconds", ["phase", "s"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
        for name, place in where.items():
            self._monitor.message(f"{name.replace('_', ' ')}: {place}")

    def _export(self, folder: Path) -> None:
        tensors = self._policy.hf_tensors()
        if dist.get_rank() == 0:
            save_folder(folder, tensors, like=self._config.model.path)
        else:
            for _ in tensors:  # the gathers need every rank
                pass
        dist.barrier()


def to_sequences(groups: Sequence[Group], config: Config) -> list[TrainingSequence]:
    """Every completion with its group-relative advantage and the reference exponent that its reward earns."""
    rewards_PG = torch.tensor([g.rewards for g in groups], dtype=torch.float32)
    advantages = group_advantages(rewards_PG).flatten().tolist()
    settings = config.algorithm
    phi = linear_phi(rewards_PG, reward_range=config.reward.range, phi_min=settings.phi_min, phi_max=settings.phi_max)
    return [
        TrainingSequence(
            token_ids=np.concatenate([np.asarray(group.prompt.token_ids, np.int32), completion.token_ids]),
            prompt_length=len(group.prompt.token_ids),
            engine_logprobs=completion.logprobs,
            advantage=advantage,
            phi=exponent,
            reward=reward,
        )
        for (group, completion, reward), advantage, exponent in zip(
            ((g, c, r) for g in groups for c, r in zip(g.completions, g.rewards, strict=True)),
            advantages,
            phi.flatten().tolist(),
            strict=True,
        )
    ]


def samples(groups: Sequence[Group], count: int) -> list[Sample]:
    """The first completion of each of the first `count` prompts, to be read by people."""
    return [
        Sample(
            prompt=group.prompt.text,
            completion=group.completions[0].text,
            answer=group.prompt.problem.answer,
            reward=group.rewards[0],
        )
        for group in groups[:count]
    ]


def batch_loss(logp_T: Tensor, entropy_T: Tensor, batch: PackedBatch, *, settings: AlgorithmConfig) -> LossSums:
    """The RAPO loss of a scored micro-batch under the run's settings."""
    assert batch.old_logp_T is not None and batch.ref_logp_T is not None, "the micro-batch was not scored"
    return rapo_loss(
        logp_T,
        entropy_T,
        old_logp_T=batch.old_logp_T,
        ref_logp_T=batch.ref_logp_T,
        engine_logp_T=batch.engine_logp_T,
        advantage_T=batch.advantage_T,
        mask_T=batch.mask_T,
        divergence=settings.divergence,
        alpha=settings.alpha,
        beta=settings.beta,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        importance_cap=settings.importance_cap,
        log_ratio_cap=settings.log_ratio_cap,
    )


def by_metric(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """{"before": {"pass@1": x}, ...} -> {"pass@1": {"before": x, ...}, ...}."""
    table: dict[str, dict[str, float]] = {}
    for when, values in scores.items():
        for name, value in values.items():
            table.setdefault(name, {})[when] = value
    return table
