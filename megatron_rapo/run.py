"""Run training: check, read and build everything, in that order, then train."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from megatron_rapo.checkpoints.folders import check_resumable, has_checkpoint, latest_checkpoint
from megatron_rapo.checkpoints.input_digests import InputReader, check_same_inputs
from megatron_rapo.checkpoints.resume import check_same_model, sound_checkpoint
from megatron_rapo.config import Config, ConfigError
from megatron_rapo.data import (
    PromptSet,
    Stops,
)
from megatron_rapo.evaluation.held_out import HeldOut
from megatron_rapo.models import ModelShape, check_agreement, check_weights, read_shape
from megatron_rapo.models.hf_weights import model_files
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.monitor import Console, Monitor, Recorder, check_writers
from megatron_rapo.monitor.settings_history import record_settings
from megatron_rapo.monitor.user_code_copies import record_user_code
from megatron_rapo.preflight.checks import (
    check_machine,
    check_model,
    check_rollout,
    check_world_size,
)
from megatron_rapo.profiling import CLOSING_S, Profiler, check_profiled
from megatron_rapo.rewards import Rewards
from megatron_rapo.rollout import Engine, name_ranges
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.rollout.setup import make_engine, make_verifier, prompts_of, report_left_out, resolved
from megatron_rapo.runtime import gc_control
from megatron_rapo.runtime.determinism import set_variables
from megatron_rapo.runtime.devices import Backend
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.runtime.rank import rank, world_size
from megatron_rapo.runtime.run_folder import RunFolder, step_of
from megatron_rapo.runtime.signals import Signals, end_interrupted
from megatron_rapo.scoring.objective_registry import check_algorithm
from megatron_rapo.training.claim_folder import check_room, claim, usable
from megatron_rapo.training.run_controls import RunControls
from megatron_rapo.verifier import VerifierPool

if TYPE_CHECKING:
    from megatron_rapo.training.trainer import Trainer


@dataclass(frozen=True)
class _Read:
    """What a process reads before it joins the others."""

    config: Config  # with the settings that the template decides
    stops: Stops
    shape: ModelShape
    rewards: Rewards
    train_set: PromptSet
    heldout: HeldOut | None


@dataclass(frozen=True)
class _Start:
    """Where a run starts: from a checkpoint, or from the beginning."""

    checkpoint: Path | None
    inputs: InputReader
    damaged: Sequence[str] = ()  # newer checkpoints that are damaged, and how
    warnings: Sequence[str] = ()


def train(config: Config, *, resume: bool, overwrite: bool, profile: Collection[int] = ()) -> bool:
    """Train in this process; the launcher started the others. Return whether the run reached its end.

    With `resume`, a run without a checkpoint begins again at step 1. `profile` has the steps to trace.
    Raises ConfigError, UserCodeError, DataError and CheckpointError before anything expensive is built.
    """
    read = _read(config)
    config = read.config
    folder = config.run.folder
    checkpoint = _newest_checkpoint(folder) if resume else None
    check_profiled(profile, first=1 + (step_of(checkpoint) if checkpoint else 0), last=config.run.steps)
    profiler = Profiler(folder, profile, rank=rank())
    signals = Signals(config.checkpoint.grace_s, closing_s=CLOSING_S if profile else 0.0)
    if config.run.deterministic:
        set_variables()
    if profile:
        name_ranges()
    init_process_group(config.run.timeout_s)
    for prompts in (read.train_set, *([read.heldout.prompts] if read.heldout else [])):
        prompts.unlink()  # every process has read them
    with ExitStack() as stack:
        stack.enter_context(claim(config, resume=resume, overwrite=overwrite))
        start = _start(config, read, checkpoint)
        check_room(config, read.shape)
        stack.enter_context(usable(folder))
        step = step_of(start.checkpoint) if start.checkpoint else 0
        monitor = stack.enter_context(_monitor(config, profiler, resume_step=step if resume else None))
        verifier = stack.enter_context(make_verifier(config))
        monitor.launched()
        report_left_out(monitor.message, config.data.train, read.train_set, config)
        if read.heldout:
            report_left_out(monitor.message, read.heldout.settings.data, read.heldout.prompts, config)
        monitor.message(f"a completion stops at {read.stops.shown}")
        monitor.message(f"starting Megatron and vLLM on {_count(dist.get_world_size(), 'process', 'processes')}")
        controls = RunControls(monitor=monitor, profiler=profiler, signals=signals)
        trainer, engine = _build(read, start, verifier, controls)
        stack.callback(engine.close)
        for problem in (*start.damaged, *start.warnings):
            monitor.message(f"WARNING: {problem}")
        if start.checkpoint:
            monitor.message(f"resuming from {start.checkpoint}{', the newest sound one' if start.damaged else ''}")
            with monitor.phase("restore"):
                trainer.restore(start.checkpoint)
        elif resume:
            monitor.message(f"{folder}: has no checkpoint yet, so the run begins again at step 1")
        with _profile_kept(profiler, monitor):
            finished = trainer.run()
    dist.barrier()  # the first process has written everything; a launcher ends all when one ends
    dist.destroy_process_group()
    return finished


def _read(config: Config) -> _Read:
    """Check the settings against the model, the machine and the problems, and read model and problems."""
    check_world_size(config, world_size())
    shape = read_shape(config.model.path)
    model_files(config.model.path)  # every checkpoint has a copy of them
    check_model(config, shape)
    check_rollout(config, shape, world_size())
    check_machine(config)
    check_weights(config.model.path, hf_shapes(shape), tied=shape.tied)
    check_agreement(config.model.path, shape)
    check_writers(config.monitor.writers)
    rewards = Rewards.load(config.reward)
    check_algorithm(config.algorithm)
    config, stops = resolved(config, shape)
    train_set = prompts_of(config, config.data.train)
    heldout = None
    if config.evaluation:
        heldout = HeldOut(config, config.evaluation, prompts_of(config, config.evaluation.data))
    batch = config.batch
    if batch.prompts_per_step * (1 + batch.dynamic_sampling_rounds) + batch.oversampled_prompts > len(
        train_set.prompts
    ):
        raise ConfigError(
            f"batch.prompts_per_step={batch.prompts_per_step}: {config.data.train} has {len(train_set.prompts)} "
            f"problems, and with batch.dynamic_sampling_rounds={batch.dynamic_sampling_rounds} and "
            f"batch.oversampled_prompts={batch.oversampled_prompts} one could be in a step twice; lower one of them."
        )
    return _Read(config, stops, shape, rewards, train_set, heldout)


def _newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint from which --resume goes on; None for a run without one yet.

    Raises CheckpointError if there is no run, or if none of its checkpoints can be used.
    """
    files = RunFolder(folder)
    if files.metrics.is_file() and not has_checkpoint(files.checkpoints):
        return None
    return latest_checkpoint(files.checkpoints)


def _start(config: Config, read: _Read, checkpoint: Path | None) -> _Start:
    """Refuse a checkpoint of another run, and begin to compute the digests of the inputs. Collective."""
    damaged, said = list[str](), list[str]()
    if checkpoint:
        checkpoint, damaged = sound_checkpoint(checkpoint)
        check_resumable(checkpoint, config)
        check_same_model(checkpoint, read.shape)
    problems = read.train_set.problems
    heldout = read.heldout.prompts.problems if read.heldout else []
    inputs = InputReader(config.model.path, problems, heldout)
    if checkpoint:
        said = check_same_inputs(
            checkpoint, inputs.inputs(), model=config.model.path, data=config.data.train, problems=problems
        )
    return _Start(checkpoint, inputs, damaged, said)


@contextmanager
def _profile_kept(profiler: Profiler, monitor: Monitor) -> Iterator[None]:
    """Write traces at the end of this context, also that of a step which was interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        profiler.write(monitor.message)
        end_interrupted()
    finally:
        profiler.write(monitor.message)


def _build(read: _Read, start: _Start, verifier: VerifierPool, controls: RunControls) -> tuple[Trainer, Engine]:
    """Build the trainer with its policy, and the engine that it samples with. This is the expensive part."""
    config, monitor = read.config, controls.monitor
    with monitor.phase("build_trainer"):
        with gc_control.imports():
            from megatron_rapo.mcore.fused import described, fused_kernels
            from megatron_rapo.mcore.parallel import init_parallel
            from megatron_rapo.mcore.policy import Policy
            from megatron_rapo.reshard.transfer import make_resharder
            from megatron_rapo.runtime.machine import record_machine
            from megatron_rapo.training.trainer import Trainer
            from megatron_rapo.training.weight_sync import WeightSync
        for line in described(fused_kernels(Backend.resolve(config).layers)):
            monitor.message(line)
        parallel = init_parallel(config.parallel, timeout_s=config.run.timeout_s, seed=config.run.seed)
        record_machine(config.run.folder, parallel.device)
        policy = Policy(config, read.shape, parallel)
    with monitor.phase("build_engine"):
        engine = make_engine(config, sleeps=config.memory.engine_sleep)
    sampler = Sampler(engine, verifier, read.rewards)
    weight_sync = WeightSync(
        config,
        policy=policy,
        resharder=make_resharder(config, read.shape, policy.norms, policy.parameters),
        sampler=sampler,
        monitor=monitor,
        prompts=read.train_set.prompts,
    )
    trainer = Trainer(
        config,
        policy=policy,
        weight_sync=weight_sync,
        sampler=sampler,
        controls=controls,
        train_prompts=read.train_set.prompts,
        heldout=read.heldout,
        inputs=start.inputs.inputs(),
    )
    return trainer, engine


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _monitor(config: Config, profiler: Profiler, *, resume_step: int | None) -> Monitor:
    """Return a monitor that writes on the first process, and only measures times on the others."""
    if dist.get_rank() != 0:
        return Monitor(annotate=profiler.phase)
    folder, console = config.run.folder, Console(config.run.steps)
    # The recorder makes metrics.jsonl first. By it, --overwrite recognises a run that was killed at any later time.
    recorder = Recorder(
        folder,
        writers=config.monitor.writers,
        settings=config.model_dump(mode="json"),
        resume_step=resume_step,
        warn=console.message,
    )
    record_settings(folder, config, step=resume_step or 0)
    record_user_code(folder, config, step=resume_step or 0, warn=console.message)
    return Monitor(recorder, console, annotate=profiler.phase)
