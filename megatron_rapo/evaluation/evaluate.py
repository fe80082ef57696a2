"""Run `evaluate`: sample a model on held-out problems, judge the samples and show the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch.distributed as dist

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.evaluation.held_out import HeldOut
from megatron_rapo.evaluation.model import EvaluatedModel
from megatron_rapo.evaluation.samples import ProblemSamples, SamplesFile
from megatron_rapo.evaluation.scores import ProblemScore
from megatron_rapo.evaluation.tables import show
from megatron_rapo.models import check_agreement, check_weights, read_shape
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.monitor import Console
from megatron_rapo.preflight.checks import check_engine, check_rollout
from megatron_rapo.rewards import Rewards
from megatron_rapo.rewards.verdict_summary import warnings
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.rollout.setup import (
    Say,
    make_engine,
    make_verifier,
    prompts_of,
    report_left_out,
    resolved,
    with_model,
)
from megatron_rapo.runtime.distributed import init_process_group, of_first_rank, on_first_rank
from megatron_rapo.runtime.rank import rank, world_size
from megatron_rapo.runtime.signals import Signals

Keep = Callable[[Sequence[ProblemSamples]], None]


def evaluate_model(config: Config, *, output: Path | None) -> None:
    """Run `evaluate` on this process: score model.path on [evaluation].data and show the scores.

    With an `output` the samples are saved there and the scores beside it. Samples that exist are not sampled again.
    Raises ConfigError, DataError, SamplesError and ScoresError before anything expensive is built.
    """
    settings = config.evaluation
    if settings is None:
        raise ConfigError("evaluation: required by evaluate and not set; add the section or --set evaluation.data=...")
    model = EvaluatedModel.find(config.model.path)
    config = with_model(config, model.files)
    shape = read_shape(model.files)
    check_rollout(config, shape, world_size())
    check_engine(config)
    check_agreement(model.files, shape)
    if not model.is_checkpoint:
        check_weights(model.path, hf_shapes(shape), tied=shape.tied)
    config, stops = resolved(config, shape)
    heldout = HeldOut(config, settings, prompts_of(config, settings.data))
    weights = model.digest() if output and rank() == 0 else ""
    done: list[ProblemScore] = []
    with ExitStack() as stack:
        keep: Keep = _nothing
        if output and rank() == 0:  # the only one that writes
            about = {"model": str(model.path), "data": str(settings.data), "left_out": len(heldout.prompts.too_long)}
            file = stack.enter_context(SamplesFile(output, heldout.sampled_with(weights), about))
            file.read(lambda sampled: done.append(ProblemScore.of(sampled)))
            keep = file.append
        Signals(grace_s=0.0)  # what is finished is written
        init_process_group(config.run.timeout_s)
        heldout.prompts.unlink()  # now that every process has them
        console = Console(0) if dist.get_rank() == 0 else None
        say: Say = console.message if console else _nothing
        report_left_out(say, settings.data, heldout.prompts, config)
        say(f"a completion stops at {stops.shown}")
        done = of_first_rank(done)
        if len(done) < len(heldout.prompts.prompts):
            done += _sample(heldout, model, start=len(done), keep=keep, say=say)
    if console:
        scores = heldout.scores(done, model=str(model.path), weights=weights)
        show(console, scores)
        judged = heldout.judged(scores)
        console.message(str(judged))
        for text in warnings(judged, config).values():
            console.message(f"WARNING: {text}")
        if output:
            scores.save(output.with_suffix(".json"))
    dist.destroy_process_group()


def _sample(heldout: HeldOut, model: EvaluatedModel, *, start: int, keep: Keep, say: Say) -> list[ProblemScore]:
    """Sample the problems from `start` on. The first process saves them as they arrive. Collective over the world."""
    total, done = len(heldout.prompts.prompts), []
    if start:
        say(f"going on: {start} of {total} problems are there")
    if model.is_checkpoint:
        say(f"{model.hf_folder}: is made of {model.path}, where it is not there yet, and stays")
    on_first_rank(model.prepare)
    config = with_model(heldout.config, model.hf_folder)
    with make_verifier(config) as verifier, closing(make_engine(config, sleeps=False)) as engine:
        for part in heldout.parts(Sampler(engine, verifier, Rewards(config.reward)), start=start):
            on_first_rank(partial(keep, part))
            done += [ProblemScore.of(sampled) for sampled in part]
            say(f"{start + len(done)} of {total} problems")
    return done


def _nothing(_: object) -> None:
    """Do nothing, on processes that neither save nor print."""
