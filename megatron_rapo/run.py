"""From a configuration to a running trainer: everything that is checked, read and built, in that order."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from megatron_rapo import garbage
from megatron_rapo.checkpoints import CHECKPOINTS, check_resumable, checkpoint_step, latest_checkpoint
from megatron_rapo.checkpoints.resume import check_same_model, sound_checkpoint
from megatron_rapo.checks import check_disk, check_machine, check_model, check_rollout, check_world_size, resolve_layers
from megatron_rapo.config import Config, ConfigError
from megatron_rapo.data import PromptSet, load_prompts
from megatron_rapo.determinism import set_variables
from megatron_rapo.distributed import init_process_group, of_first_rank, on_first_rank
from megatron_rapo.evaluation.model import EvaluatedModel
from megatron_rapo.evaluation.sampled import HeldOut
from megatron_rapo.evaluation.samples import ProblemSamples, SamplesFile
from megatron_rapo.evaluation.scores import ProblemScore
from megatron_rapo.evaluation.tables import show
from megatron_rapo.hf import ModelShape, read_shape
from megatron_rapo.launcher import rank, world_size
from megatron_rapo.monitor import METRICS_FILE, Console, Monitor, Recorder, check_writers
from megatron_rapo.profiling import CLOSING_S, Profiler, check_profiled
from megatron_rapo.rewards import Rewards, VerifierPool
from megatron_rapo.rollout import Engine, name_ranges
from megatron_rapo.sampling import Sampler
from megatron_rapo.signals import Signals, end_interrupted
from megatron_rapo.writing import explained, is_of_disk

if TYPE_CHECKING:
    from megatron_rapo.trainer import Trainer

Keep = Callable[[Sequence[ProblemSamples]], None]
Say = Callable[[str], None]
RUN_SETTINGS = "config.json"  # in the run folder: every setting of the run


def train(config: Config, *, resume: bool, overwrite: bool, profile: Collection[int] = ()) -> bool:
    """Run `train` on this process; the launcher started the others. Returns whether it came to its end.

    The steps in `profile` are traced.
    Raises ConfigError, RewardError, DataError and CheckpointError before anything expensive is built.
    """
    check_world_size(config, world_size())
    shape = read_shape(config.model.path)
    check_model(config, shape)
    check_rollout(config, shape, world_size())
    check_machine(config)
    check_writers(config.monitor.writers)
    rewards = Rewards.load(config.reward)
    train_set = _prompts(config, config.data.train)
    heldout = None
    if config.evaluation:
        heldout = HeldOut(config, config.evaluation, _prompts(config, config.evaluation.data))
    batch = config.batch
    if batch.prompts_per_step * (1 + batch.refill_rounds) + batch.spare_prompts > len(train_set.prompts):
        raise ConfigError(
            f"batch.prompts_per_step={batch.prompts_per_step}: {config.data.train} has {len(train_set.prompts)} "
            f"problems, and with batch.refill_rounds={batch.refill_rounds} and batch.spare_prompts="
            f"{batch.spare_prompts} one could be in a step twice; lower one of them."
        )
    folder = config.run.folder
    checkpoint = latest_checkpoint(folder / CHECKPOINTS) if resume else None
    check_profiled(profile, first=1 + (checkpoint_step(checkpoint) if checkpoint else 0), last=config.run.steps)
    profiler = Profiler(folder, profile, rank=rank())
    signals = Signals(config.checkpoint.grace_s, closing_s=CLOSING_S if profile else 0.0)
    if config.run.deterministic:
        set_variables()
    if profile:
        name_ranges()
    init_process_group(config.run.timeout_s)
    for prompts in (train_set, *([heldout.prompts] if heldout else [])):
        prompts.unlink()  # now that every process has them
    damaged: list[str] = []
    if checkpoint is None:
        _claim(config, overwrite=overwrite)
    else:
        checkpoint, damaged = sound_checkpoint(checkpoint)
        check_resumable(checkpoint, config)
        check_same_model(checkpoint, shape)
    _check_disk(config, shape)

    with (
        _usable(folder),
        _monitor(config, checkpoint, profiler) as monitor,
        _verifier(config) as verifier,
        ExitStack() as stack,
    ):
        monitor.launched()
        _report_left_out(monitor.message, config.data.train, train_set, config)
        if heldout:
            _report_left_out(monitor.message, heldout.settings.data, heldout.prompts, config)
        monitor.message(f"starting Megatron and vLLM on {dist.get_world_size()} processes")
        trainer, engine = _build(config, shape, verifier, rewards, monitor, profiler, signals, train_set, heldout)
        stack.callback(engine.close)
        for problem in damaged:
            monitor.message(f"WARNING: {problem}")
        if checkpoint:
            monitor.message(f"resuming from {checkpoint}{', the newest sound one' if damaged else ''}")
            with monitor.phase("restore"):
                trainer.restore(checkpoint)
        with _profile_kept(profiler, monitor):
            finished = trainer.run()
    dist.destroy_process_group()
    return finished


@contextmanager
def _profile_kept(profiler: Profiler, monitor: Monitor) -> Iterator[None]:
    """Within it, what is profiled of a step that does not come to its end is written too."""
    try:
        yield
    except KeyboardInterrupt:
        profiler.write(monitor.message)
        end_interrupted()
    finally:
        profiler.write(monitor.message)


def _build(
    config: Config,
    shape: ModelShape,
    verifier: VerifierPool,
    rewards: Rewards,
    monitor: Monitor,
    profiler: Profiler,
    signals: Signals,
    train_set: PromptSet,
    heldout: HeldOut | None,
) -> tuple[Trainer, Engine]:
    """The expensive part: the trainer with its policy, and the engine that it samples with."""
    with monitor.phase("build_trainer"):
        with garbage.imports():
            from megatron_rapo.machine import record_machine
            from megatron_rapo.mcore.fused import described, fused_kernels
            from megatron_rapo.mcore.parallel import init_parallel
            from megatron_rapo.mcore.policy import Policy
            from megatron_rapo.reshard.transfer import make_resharder
            from megatron_rapo.trainer import Trainer
            from megatron_rapo.weight_sync import WeightSync
        for line in described(fused_kernels(resolve_layers(config))):
            monitor.message(line)
        parallel = init_parallel(config.parallel, timeout_s=config.run.timeout_s, seed=config.run.seed)
        record_machine(config.run.folder, parallel.device)
        policy = Policy(config, shape, parallel)
    with monitor.phase("build_engine"):
        engine = _engine(config, sleeps=config.memory.engine_sleep)
    sampler = Sampler(engine, verifier, rewards)
    weight_sync = WeightSync(
        config,
        policy=policy,
        resharder=make_resharder(config, shape, policy.norms, policy.parameters),
        sampler=sampler,
        monitor=monitor,
        prompts=train_set.prompts,
    )
    trainer = Trainer(
        config,
        policy=policy,
        weight_sync=weight_sync,
        sampler=sampler,
        monitor=monitor,
        profiler=profiler,
        signals=signals,
        train_prompts=train_set.prompts,
        heldout=heldout,
    )
    return trainer, engine


def evaluate_model(config: Config, *, output: Path | None) -> None:
    """Run `evaluate` on this process: the scores of model.path on [evaluation].data, shown.

    With an `output` its samples are kept there, and the scores beside it; what is there already is gone on with.
    Raises ConfigError, DataError, SamplesError and ScoresError before anything expensive is built.
    """
    settings = config.evaluation
    if settings is None:
        raise ConfigError("evaluation: required by evaluate and not set; add the section or --set evaluation.data=...")
    model = EvaluatedModel.find(config.model.path)
    config = _with_model(config, model.files)
    check_rollout(config, read_shape(model.files), world_size())
    heldout = HeldOut(config, settings, _prompts(config, settings.data))
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
        _report_left_out(say, settings.data, heldout.prompts, config)
        done = of_first_rank(done)
        if len(done) < len(heldout.prompts.prompts):
            done += _sample(heldout, model, start=len(done), keep=keep, say=say)
    if console:
        scores = heldout.scores(done, model=str(model.path), weights=weights)
        show(console, scores)
        if output:
            scores.save(output.with_suffix(".json"))
    dist.destroy_process_group()


def _sample(heldout: HeldOut, model: EvaluatedModel, *, start: int, keep: Keep, say: Say) -> list[ProblemScore]:
    """The problems from `start` on; the first process keeps them as they come. Collective over the world."""
    total, done = len(heldout.prompts.prompts), []
    if start:
        say(f"going on: {start} of {total} problems are there")
    if model.is_checkpoint:
        say(f"{model.hf_folder}: is made of {model.path}, where it is not there yet, and stays")
    on_first_rank(model.prepare)
    config = _with_model(heldout.config, model.hf_folder)
    with _verifier(config) as verifier, closing(_engine(config, sleeps=False)) as engine:
        for part in heldout.parts(Sampler(engine, verifier, Rewards(config.reward)), start=start):
            on_first_rank(partial(keep, part))
            done += [ProblemScore.of(sampled) for sampled in part]
            say(f"{start + len(done)} of {total} problems")
    return done


def _nothing(_: object) -> None:
    """What a process does that neither keeps nor says anything."""


def _with_model(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": folder})})


def _prompts(config: Config, path: Path) -> PromptSet:
    data = config.data
    return load_prompts(
        path,
        config.model.path,
        data.template,
        data.max_prompt_tokens,
        problem_field=data.problem_field,
        answer_field=data.answer_field,
        shared=world_size() > 1,
    )


def _report_left_out(say: Say, path: Path, prompts: PromptSet, config: Config) -> None:
    left_out = len(prompts.too_long)
    if left_out:
        say(
            f"{path}: {left_out} of {left_out + len(prompts.prompts)} problems left out, their prompts are over "
            f"data.max_prompt_tokens={config.data.max_prompt_tokens}"
        )


def _claim(config: Config, *, overwrite: bool) -> None:
    """Take the run folder for a new run, empty. Collective: every process learns of a refusal."""
    with _usable(config.run.folder):
        on_first_rank(lambda: _empty(config, overwrite=overwrite))


def _check_disk(config: Config, shape: ModelShape) -> None:
    """Refuse a run folder that cannot be written to, or has no room for a checkpoint. Collective."""
    with _usable(config.run.folder):
        on_first_rank(lambda: check_disk(config, shape))


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Within it, that the disk does not take what is written is the input's fault."""
    try:
        yield
    except OSError as error:
        if not is_of_disk(error):
            raise
        raise ConfigError(f"run.folder={folder}: {explained(error, folder)}") from None


def _empty(config: Config, *, overwrite: bool) -> None:
    """Make the run folder. Raises ConfigError where that would lose something."""
    folder = config.run.folder
    if folder.exists() and any(folder.iterdir()):
        refusal = _why_not_delete(config) if overwrite else _EARLIER_RUN.format(folder=folder)
        if refusal:
            raise ConfigError(refusal)
        shutil.rmtree(folder.resolve())
    folder.mkdir(parents=True, exist_ok=True)


_EARLIER_RUN = (
    "run.folder={folder}: holds an earlier run, which would be lost; pass --resume to go on with it, --overwrite to "
    "delete it, or name another folder."
)


def _why_not_delete(config: Config) -> str | None:
    """Whether --overwrite would delete something else than an earlier run."""
    folder = config.run.folder.resolve()
    if not (folder / METRICS_FILE).is_file():
        return f"run.folder={folder}: has no {METRICS_FILE}, so no run made it; it is not deleted, name another folder."
    needed = {"model.path": config.model.path, "data.train": config.data.train, "the current folder": Path.cwd()}
    if config.evaluation:
        needed["evaluation.data"] = config.evaluation.data
    for name, path in needed.items():
        if path.resolve().is_relative_to(folder):
            return f"run.folder={folder}: holds {name}, which --overwrite would delete; name another folder."
    return None


def _verifier(config: Config) -> VerifierPool:
    reward = config.reward
    return VerifierPool(
        reward.workers, reward.timeout_s, budget_s=reward.budget_s, memory_bytes=reward.memory_mib * 2**20
    )


def _engine(config: Config, *, sleeps: bool) -> Engine:
    return Engine(
        config.model.path,
        config.rollout,
        dtype=config.precision.dtype,
        max_sequence_tokens=config.max_sequence_tokens,
        seed=config.run.seed,
        sleeps=sleeps,
    )


def _monitor(config: Config, checkpoint: Path | None, profiler: Profiler) -> Monitor:
    """Writing on the first process, timing only on the others."""
    if dist.get_rank() != 0:
        return Monitor(annotate=profiler.phase)
    folder, console = config.run.folder, Console(config.run.steps)
    # The recorder's metrics are the first file, by which --overwrite knows a run that was killed at any time after it.
    recorder = Recorder(
        folder,
        writers=config.monitor.writers,
        settings=config.model_dump(mode="json"),
        resume_step=checkpoint_step(checkpoint) if checkpoint else None,
        warn=console.message,
    )
    (folder / RUN_SETTINGS).write_text(config.to_json() + "\n")
    return Monitor(recorder, console, annotate=profiler.phase)
