"""Where a run's checkpoints are, and which of them a run goes on from.

A checkpoint is one folder `step-000042`, written as `step-000042.partial` and renamed when it is whole; `latest`
beside it is a text file with the name of the newest whole one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from megatron_rapo.config import Config
from megatron_rapo.errors import InputError, shortened
from megatron_rapo.runtime.atomic_write import PARTIAL, write_text_atomically
from megatron_rapo.runtime.interval import is_due
from megatron_rapo.runtime.run_folder import STEP_PREFIX, step_of
from megatron_rapo.runtime.safe_json import JSONError, read_json

MODEL_FILES = "hf"  # folder within a checkpoint, of what belongs to a model besides its weights
SETTINGS = "settings.json"  # in a checkpoint: what the run was set to
INPUTS = "inputs.json"  # in a checkpoint: digests of the model's files and of the problems (inputs.py)
BY_TIME = "saved_by_time"  # empty file in a checkpoint that goes when a newer one is there
_LATEST, _REMOVED = "latest", ".removed"
_NAME = re.compile(rf"{STEP_PREFIX}[0-9]{{1,18}}")
_FREE_SECTIONS = {"parallel", "reshard", "memory", "precision", "checkpoint", "monitor", "evaluation"}
_FREE = {
    "model.layers",
    "model.recompute",
    "batch.old_logprobs_from_training",
    "reward.workers",
    "reward.timeout_s",
    "reward.budget_s",
    "reward.memory_mib",
    "batch.tokens_per_microbatch",
    "batch.share_prompts",
    "rollout.tensor",
    "rollout.kv_cache_mib",
    "rollout.max_concurrent",
    "rollout.compile",
    "rollout.fp8",
    "rollout.packed",
    "optimizer.max_skipped_steps",
    "run.folder",
    "run.deterministic",
    "run.timeout_s",
}
_INPUTS = {"model.path", "data.train"}  # free where the checkpoint has digests of what they name
_BEFORE: dict[str, object] = {"rollout.stop": [], "rollout.stop_token_ids": [], "data.template_digest": ""}
"""Values that settings had, in effect, before they were settings: those of a checkpoint that does not name them."""


class CheckpointError(InputError):
    """A checkpoint that is not there or cannot be used."""


def latest_checkpoint(root: Path) -> Path:
    """Return the checkpoint that `latest` names, or the newest where it names none.

    Raises CheckpointError where there is none.
    """
    named = _named(root)
    if named:
        return named
    there = _checkpoints(root)
    if not there:
        raise CheckpointError(f"{root}: no checkpoint to resume from; start without --resume.")
    return there[0]


def problem_of_pointer(root: Path) -> str | None:
    """Return what is wrong with `latest`, in words for a warning; None where it names a checkpoint."""
    if _named(root):
        return None
    return (
        f"{root / _LATEST}: is missing, or does not name a checkpoint beside it; the newest one is taken, and the next "
        "one that is saved puts it right."
    )


def _named(root: Path) -> Path | None:
    """Return the checkpoint that `latest` names; None where it is missing, garbled or names what is not there."""
    try:
        with open(root / _LATEST, "rb") as stream:
            name = stream.read(100).decode(errors="replace").strip()
    except OSError:
        return None
    folder = root / name
    return folder if _NAME.fullmatch(name) and folder.is_dir() else None


def has_checkpoint(root: Path) -> bool:
    """Return whether a save under `root` ever came to its end."""
    names = (path.name.removeprefix(STEP_PREFIX) for path in root.glob(f"{STEP_PREFIX}*"))
    return (root / _LATEST).exists() or any(name.isdecimal() for name in names)


def earlier_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints beside `folder` of steps before it, newest first."""
    return [path for path in _checkpoints(folder.parent) if step_of(path) < step_of(folder)]


def _checkpoints(root: Path) -> list[Path]:
    """Return every checkpoint under `root`, newest first."""
    return sorted((p for p in root.glob(f"{STEP_PREFIX}*") if _NAME.fullmatch(p.name)), key=step_of, reverse=True)


def prune(newest: Path, *, keep_last: int, keep_every: int) -> None:
    """Remove the checkpoints before `newest`, but for the last ones (`newest` among them) and every so many steps.

    What is removed loses its name first, so that no rest of one can be taken for a checkpoint. 0 keeps all, or none.
    Checkpoints that were saved for the time's sake are removed in any case.
    """
    for ending in (_REMOVED, PARTIAL):  # of a removal and of a save that were interrupted
        for rest in newest.parent.glob(f"{STEP_PREFIX}*{ending}"):
            shutil.rmtree(rest)
    earlier = earlier_checkpoints(newest)
    by_time = [folder for folder in earlier if (folder / BY_TIME).exists()]
    others = [folder for folder in earlier if folder not in by_time][keep_last - 1 :] if keep_last else []
    for folder in by_time + [each for each in others if not is_due(step_of(each), keep_every)]:
        shutil.rmtree(folder.rename(folder.with_name(folder.name + _REMOVED)))


def save_settings(folder: Path, config: Config) -> None:
    """Keep the settings of a checkpoint with it, for `check_resumable`."""
    write_text_atomically(folder / SETTINGS, config.to_json() + "\n")


def check_resumable(checkpoint: Path, config: Config) -> None:
    """Refuse to go on from `checkpoint` with settings under which it would be another run. Raises CheckpointError.

    Free to change are where and how fast things run (layout, memory, workers, folders), what is watched, and the number
    of steps where the learning rate does not depend on it, but not to fewer than `checkpoint` has. Model and training
    data may lie elsewhere: `check_same_inputs` compares what they hold.
    """
    saved = _saved_settings(checkpoint)
    if step_of(checkpoint) > config.run.steps:
        raise CheckpointError(
            f"run.steps={config.run.steps}: {checkpoint} was written after step {step_of(checkpoint)}, and a "
            f"run does not go back; set run.steps to {step_of(checkpoint)} or more, or start a new run."
        )
    free = _FREE | ({"run.steps"} if config.optimizer.schedule == "constant" else set())
    if (checkpoint / INPUTS).exists():
        free |= _INPUTS
    for section, present in config.model_dump(mode="json").items():
        if section in _FREE_SECTIONS:
            continue
        for field, value in present.items():
            name = f"{section}.{field}"
            default = _BEFORE.get(name, _default(config, section, field))  # of what the checkpoint is older than
            before = saved.get(section, {}).get(field, default)
            if name not in free and value != before:
                now, then = map(_as_option, (value, before))
                raise CheckpointError(
                    f"{name}={now}: {checkpoint} was written with {then}, and the run would not go on as the same one; "
                    f"resume with {name}={then}, or start a new run."
                )


def _saved_settings(checkpoint: Path) -> dict[str, dict[str, object]]:
    """Return what a checkpoint's run was set to. Raises CheckpointError."""
    path = checkpoint / SETTINGS
    try:
        saved = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: holds no {SETTINGS}, so it is not whole; resume from another.") from None
    except (OSError, JSONError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); resume from another checkpoint.") from None
    if not isinstance(saved, dict) or not all(isinstance(each, dict | None) for each in saved.values()):
        raise CheckpointError(f"{path}: does not hold the sections of a run; resume from another checkpoint.")
    return {section: fields or {} for section, fields in saved.items()}


def _as_option(value: object) -> str:
    """Return a value as --set takes it, on one line."""
    plain = isinstance(value, str) and value.isprintable()
    return shortened(str(value) if plain else json.dumps(value))


def _default(config: Config, section: str, field: str) -> object:
    """Return the default of a setting as it stands in a checkpoint; None where there is none."""
    settings = getattr(config, section)
    info = type(settings).model_fields[field]
    if info.is_required():
        return None
    return settings.model_copy(update={field: info.get_default(call_default_factory=True)}).model_dump(mode="json")[
        field
    ]


def point_to(folder: Path) -> None:
    """Make the whole checkpoint in `folder` (runtime/atomic_write.py) the latest of its run."""
    write_text_atomically(folder.with_name(_LATEST), folder.name + "\n")
