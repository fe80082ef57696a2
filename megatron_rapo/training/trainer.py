"""Run the training loop: reshard -> prompts -> rollout -> verify -> advantages, phi -> score -> train -> log.

One process per device runs all of it, in step with the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_rapo.checkpoints.input_digests import Inputs
from megatron_rapo.checkpoints.schedule import Due, SaveSchedule
from megatron_rapo.config import Config
from megatron_rapo.evaluation.held_out import HeldOut
from megatron_rapo.evaluation.scores import ProblemScore
from megatron_rapo.mcore.checkpoint import load_checkpoint
from megatron_rapo.mcore.checkpoint_saver import Saver
from megatron_rapo.mcore.forward_backward import LossFunction
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.monitor import RecordedCompletion, Sample
from megatron_rapo.rewards.verdict_summary import SignalWatch, warnings
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.runtime.distributed import of_first_rank, on_first_rank
from megatron_rapo.runtime.interval import is_due
from megatron_rapo.runtime.run_folder import RunFolder
from megatron_rapo.runtime.signals import Stopped
from megatron_rapo.scoring.objective import groups_with_signal, loss_function, to_sequences
from megatron_rapo.scoring.packing import PackedBatch
from megatron_rapo.training.export import export
from megatron_rapo.training.gradient_share import BY_REWARD, WHOLE, GradientShareSchedule
from megatron_rapo.training.group_scheduler import GroupScheduler
from megatron_rapo.training.logprob_parity import GapBudget
from megatron_rapo.training.metrics import (
    estimator_scalars,
    histograms,
    reference_scalars,
    rollout_scalars,
    training_scalars,
)
from megatron_rapo.training.rollout_log import choose, is_recorded, recorded
from megatron_rapo.training.run_controls import RunControls
from megatron_rapo.training.skipped_steps import SkippedSteps
from megatron_rapo.training.summary import summarise
from megatron_rapo.training.weight_sync import WeightSync
from megatron_rapo.types import Group, Prompt, TrainingSequence
from megatron_rapo.verifier import extractor


class Trainer:
    """A run. All methods are collective over the world."""

    def __init__(
        self,
        config: Config,
        *,
        policy: Policy,
        weight_sync: WeightSync,
        sampler: Sampler,
        controls: RunControls,
        train_prompts: Sequence[Prompt],
        heldout: HeldOut | None = None,
        inputs: Inputs,
    ) -> None:
        self._config, self._policy, self._sampler = config, policy, sampler
        self._monitor = monitor = controls.monitor
        self._folder = RunFolder(config.run.folder)
        self._weight_sync, self._signals, self._profiler = weight_sync, controls.signals, controls.profiler
        self._rollouts = GroupScheduler(config, sampler=sampler, monitor=monitor, prompts=train_prompts)
        self._heldout = heldout
        self._loss = self._loss_with()
        self._budget = GapBudget(config.precision, monitor.message)
        self._skipped = SkippedSteps(config, monitor.message)
        self._watch = SignalWatch(config, monitor.message)
        self._share_schedule = GradientShareSchedule(
            config.monitor.gradient_share_every_steps, pipeline=config.parallel.pipeline
        )
        self._saver = Saver(self._folder.checkpoints, policy, inputs)
        self._step = self._saved_step = 0
        self._scores: dict[str, dict[str, float]] = {}  # "before" or "after" -> {"pass@k": value, ...}

    def restore(self, checkpoint: Path) -> None:
        """Continue from `checkpoint`."""
        state = load_checkpoint(checkpoint, self._policy)
        self._step = self._saved_step = state["step"]
        self._rollouts.load_state_dict(state["rollouts"])
        self._scores = state["scores"]
        self._skipped.load_state_dict(state["skipped_steps"])
        if "gradient_share" in state:  # earlier versions did not have it
            self._share_schedule.load_state_dict(state["gradient_share"])
        self._monitor.load_state_dict(state["monitor"])

    def run(self) -> bool:
        """Train for the configured number of steps. Evaluate held-out problems before, during and after that.

        Returns False if a signal stopped it before. Then the last finished step is saved.
        """
        total = self._config.run.steps
        schedule = SaveSchedule(self._config.checkpoint, total)
        while True:
            rollouts = self._rollouts.state_dict()
            try:
                self._stop_if_told()
                with self._monitor.phase("checkpoint"):
                    self._saver.poll()
                self._evaluate()  # not part of a checkpoint: a run that stops during it evaluates again when it resumes
                if self._step >= total:
                    break
                with self._profiler.step(self._step + 1):
                    self._train_one_step()
            except Stopped:
                self._rollouts.load_state_dict(rollouts)
                self._stop()
                return False
            if due := schedule.due(self._step):
                self._save(due)
                schedule.saved()
            if is_due(self._step, self._config.checkpoint.hf_every):
                with self._monitor.phase("checkpoint"):
                    export(self._policy, self._folder.export(self._step))
            if self._profiler.has_trace:
                with self._monitor.phase("profile"):
                    self._profiler.write(self._monitor.message)
        self._finish()
        return True

    def _train_one_step(self) -> None:
        started, monitor, share = time.perf_counter(), self._monitor, self._config.batch.prompts_per_optimizer_step
        step = self._step + 1
        monitor.begin_step()
        resharding = self._weight_sync.run(self._step)
        rollout = self._rollouts.next(step)
        self._sampler.engine.sleep()
        self._stop_if_told()
        self._watch.look(step, rollout.sampled, sum(groups_with_signal(rollout.sampled, self._config.algorithm)))
        groups = [rollout.groups[i : i + share] for i in range(0, len(rollout.groups), share)]
        sequences = [to_sequences(of_step, self._config) for of_step in groups]
        with monitor.phase("score"):
            steps = self._score([self._policy.pack(of_step) for of_step in sequences])
        self._stop_if_told()
        shares: dict[str, float] = {}
        with self._policy.training_state.in_place():
            due = self._share_schedule.due(step, [len(batches) for batches in steps])
            if due and self._config.algorithm.alpha:
                with monitor.phase("gradient_share"):
                    shares = self._gradient_shares(steps[0], due)
            with monitor.phase("train"):
                trained = [self._skipped.watched(step, self._policy.train_step(b, self._loss)) for b in steps]
        with monitor.phase("diagnose"):
            diagnostics = self._policy.diagnostics([b for of_step in trained for b in of_step.batches])
        self._budget.check(diagnostics["rollout/logprob_gap_mean"], step=self._step)
        completions = self._recorded(step, groups, sequences, [of_step.batches for of_step in trained])
        losses = [of_step.means for of_step in trained]
        self._step = step

        elapsed = time.perf_counter() - started
        monitor.step(
            step,
            {
                **rollout_scalars(rollout.sampled, self._config.algorithm),
                "rollout/groups_replaced": len(rollout.sampled) / len(rollout.groups) - 1,
                **rollout.scalars,
                **diagnostics,
                **shares,
                **reference_scalars([s for of_step in sequences for s in of_step]),
                **training_scalars(losses, self._config.algorithm),
                **estimator_scalars(losses, self._config.algorithm),
                **resharding,
                "throughput/tokens_per_s": sum(len(c.token_ids) for g in rollout.sampled for c in g.completions)
                / elapsed,
                "seconds/step": elapsed,
            },
            samples(rollout.groups, self._config.monitor.sampled_completions),
            histograms(rollout.sampled, completions),
        )

    def _recorded(
        self,
        step: int,
        groups: Sequence[Sequence[Group]],
        sequences: Sequence[Sequence[TrainingSequence]],
        scored: Sequence[Sequence[PackedBatch]],
    ) -> list[RecordedCompletion]:
        """Record completions of the scored step token by token, and return them. Return none if it is not due."""
        settings = self._config.monitor
        if not is_recorded(settings, step):
            return []
        with self._monitor.phase("record"):
            chosen = choose(groups, settings.rollouts_completions)
            log_probs = self._policy.token_log_probs(scored, {place: sequences[place[0]][place[1]] for place in chosen})
            extract = extractor(self._config.reward.answer)
            completions = recorded(step, chosen, sequences, log_probs, self._sampler.engine.decode, extract)
            self._monitor.rollouts(step, completions)
        return completions

    def _stop_if_told(self) -> None:
        """Raise Stopped if any process has received a signal. All processes wait for each other here."""
        with self._monitor.phase("wait"):
            self._signals.check()

    def _score(self, steps: Sequence[Sequence[PackedBatch]]) -> list[list[PackedBatch]]:
        """Add the log-probabilities that the loss needs besides those of the training pass."""
        if self._config.batch.old_logprobs_from_training:
            return self._policy.score_reference(steps)
        return self._policy.score(steps)

    def _gradient_shares(
        self, batches: Sequence[PackedBatch], wanted: Sequence[str] = (WHOLE, *BY_REWARD)
    ) -> dict[str, float]:
        """Return the divergence's share of the gradient: |its| / (|its| + |the rest's|), for all tokens and by reward.

        Each takes two passes. To save time they use only one micro-batch of each rank (with a pipeline, one per stage).
        """
        batches = batches[: self._config.parallel.pipeline]
        only_divergence, only_rest = self._loss_with(beta=0.0), self._loss_with(alpha=0.0)
        middle = self._config.reward.middle
        shares = {}
        for name in wanted:
            chosen = [b if not name else b.only(b.by_reward(middle)[name[1:]]) for b in batches]
            unrewarded = [replace(b, advantage_T=torch.zeros_like(b.advantage_T)) for b in chosen]
            divergence = self._policy.gradient_norm(unrewarded, only_divergence)
            rest = self._policy.gradient_norm(chosen, only_rest)
            if divergence + rest > 0:
                shares[f"estimator/kl_gradient_share{name}"] = divergence / (divergence + rest)
        return shares

    def _loss_with(self, **settings: float) -> LossFunction:
        """Return the run's loss with other `settings` of [algorithm]."""
        algorithm = self._config.algorithm.model_copy(update=settings)
        return loss_function(self._config.model_copy(update={"algorithm": algorithm}), self._policy.sequence_mean)

    def _evaluate(self) -> None:
        """Evaluate if it is due: before the first step, every evaluation.every_steps, and after the last one.

        This does not change training: every sample has its own seed, and the engine keeps nothing.
        """
        heldout, step = self._heldout, self._step
        when = "after" if step >= self._config.run.steps else "before" if step == 0 else None
        if heldout is None or not (when or is_due(step, heldout.settings.every_steps)):
            return
        self._weight_sync.run(step)
        problems: list[ProblemScore] = []
        with self._monitor.phase("evaluate"):
            for part in heldout.parts(self._sampler):
                problems += [ProblemScore.of(sampled) for sampled in part]
                self._signals.check()
            file = self._folder.evaluation(step)
            scores = heldout.scores(problems, model=f"{self._folder.path} after step {step}", weights=file.stem)
            on_first_rank(lambda: scores.save(file))
        if when:
            self._scores[when] = scores.means("pass@", "maj@")
        self._monitor.evaluation(step, {f"eval/{name}": value for name, value in scores.scalars().items()})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.means("pass@").items())
        self._monitor.message(f"held-out problems {f'{when} training' if when else f'after step {step}'}: {shown}")
        if when == "before":
            self._monitor.message(f"held-out problems, {heldout.judged(scores)}")
            for text in warnings(heldout.judged(scores), self._config).values():
                self._monitor.message(f"WARNING: held-out problems: {text}")

    def _save(self, due: Due = Due.STEPS) -> None:
        """Begin to save a checkpoint. It exists when `self._saver` has finished it."""
        state = {
            "step": self._step,
            "rollouts": self._rollouts.state_dict(),
            "scores": self._scores,
            "skipped_steps": self._skipped.state_dict(),
            "gradient_share": self._share_schedule.state_dict(),
            "monitor": of_first_rank(self._monitor.state_dict()),
        }
        with self._monitor.phase("checkpoint"):
            self._saver.save(self._step, state, by_time=due is Due.TIME)
        self._saved_step = self._step
        if due is Due.TIME:
            self._monitor.message(f"saving step {self._step} ({due.value})")

    def _stop(self) -> None:
        """Save the last finished step if it is not saved yet. The unfinished step is lost."""
        if self._step and self._saved_step != self._step:
            self._save()
        self._saver.finish()
        if self._step:
            self._monitor.message(f"stopped after step {self._step}; --resume goes on")
        else:
            self._monitor.message("stopped before the end of step 1, so nothing is saved; --resume begins it again")

    def _finish(self) -> None:
        """Finish the last checkpoint, export, and show where everything is."""
        folder = self._folder
        where = {"checkpoint": str(folder.checkpoint(self._step))}
        with self._monitor.phase("checkpoint"):
            self._saver.finish()
            if self._config.checkpoint.hf_export:
                export(self._policy, folder.hf)
                where["hf_export"] = str(folder.hf)
        if "tensorboard" in self._config.monitor.writers:
            tensorboard = Path(sys.executable).with_name("tensorboard")
            where["tensorboard"] = f"{tensorboard} --logdir {folder.tensorboard}"
        if self._profiler.folder.exists():
            where["profile"] = f"{self._profiler.folder} (open a trace in ui.perfetto.dev or chrome://tracing)"
        where["report"] = f"{sys.executable} -m megatron_rapo report {folder.path}"
        summarise(folder, self._monitor, self._scores, where)


def samples(groups: Sequence[Group], count: int) -> list[Sample]:
    """Return the first completion of each of the first `count` prompts, for people to read."""
    return [
        Sample(
            prompt=group.prompt.text,
            completion=group.completions[0].text,
            answer=group.prompt.problem.answer,
            reward=group.rewards[0],
        )
        for group in groups[:count]
    ]
