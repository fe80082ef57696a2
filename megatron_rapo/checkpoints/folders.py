"""Find a run's checkpoints, remove old ones, and check that a run may resume from one.

A checkpoint is a folder `step-000042`. It is written as `step-000042.partial` and renamed when it is complete. The text
file `latest` beside it holds the name of the newest complete one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from megatron_rapo.config import Config
from megatron_rapo.config.renamed import with_present_names
from megatron_rapo.errors import InputError, shortened
from megatron_rapo.runtime.atomic_write import PARTIAL, write_text_atomically
from megatron_rapo.runtime.interval import is_due
from megatron_rapo.runtime.run_folder import STEP_PREFIX, step_of
from megatron_rapo.runtime.safe_json import JSONError, read_json

MODEL_FILES = "hf"  # folder in a checkpoint: the model's files other than weights
SETTINGS = "settings.json"  # in a checkpoint: the run's settings
INPUTS = "inputs.json"  # in a checkpoint: digests of the model's files and the problems (inputs.py)
BY_TIME = "saved_by_time"  # empty file that marks a checkpoint to remove once there is a newer one
_LATEST, _REMOVED = "latest", ".removed"
_NAME = re.compile(rf"{STEP_PREFIX}[0-9]{{1,18}}")
_FREE_SECTIONS = {"parallel", "reshard", "memory", "precision", "checkpoint", "monitor", "evaluation"}
_FREE = {
    *("model.layers", "model.recompute", "optimizer.max_skipped_steps"),
    *("batch.old_logprobs_from_training", "batch.tokens_per_microbatch", "batch.share_prompts"),
    *("reward.workers", "reward.timeout_s", "reward.budget_s", "reward.memory_mib"),
    *("rollout.tensor", "rollout.kv_cache_mib", "rollout.max_concurrent"),
    *("rollout.compile", "rollout.fp8", "rollout.packed"),
    *("run.folder", "run.deterministic", "run.timeout_s"),
}
_INPUTS = {"model.path", "data.train"}  # free if the checkpoint has digests of these files
_BEFORE: dict[str, object] = {"rollout.stop": [], "rollout.stop_token_ids": [], "data.template_digest": ""}
"""Values of newer settings for checkpoints that are too old to name them. Others have their default."""


class CheckpointError(InputError):
    """A checkpoint is missing or cannot be used."""


def latest_checkpoint(root: Path) -> Path:
    """Return the checkpoint that `latest` names, else the newest one. Raises CheckpointError if there is none."""
    found = _named(root) or next(iter(_checkpoints(root)), None)
    if not found:
        raise CheckpointError(f"{root}: no checkpoint to resume from; start without --resume.")
    return found


def problem_of_pointer(root: Path) -> str | None:
    """Return a warning about the file `latest`, or None if it names a checkpoint."""
    if _named(root):
        return None
    return (
        f"{root / _LATEST}: is missing, or does not name a checkpoint beside it; using the newest checkpoint. The next "
        "save writes this file again."
    )


def _named(root: Path) -> Path | None:
    """Return the checkpoint that `latest` names, or None if the file or the checkpoint is missing or invalid."""
    try:
        with open(root / _LATEST, "rb") as stream:
            name = stream.read(100).decode(errors="replace").strip()
    except OSError:
        return None
    folder = root / name
    return folder if _NAME.fullmatch(name) and folder.is_dir() else None


def has_checkpoint(root: Path) -> bool:
    """Return whether a save under `root` was ever completed."""
    names = (path.name.removeprefix(STEP_PREFIX) for path in root.glob(f"{STEP_PREFIX}*"))
    return (root / _LATEST).exists() or any(name.isdecimal() for name in names)


def earlier_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints beside `folder` from earlier steps, newest first."""
    return [path for path in _checkpoints(folder.parent) if step_of(path) < step_of(folder)]


def _checkpoints(root: Path) -> list[Path]:
    """Return every checkpoint under `root`, newest first."""
    return sorted((p for p in root.glob(f"{STEP_PREFIX}*") if _NAME.fullmatch(p.name)), key=step_of, reverse=True)


def prune(newest: Path, *, keep_last: int, keep_every: int) -> None:
    """Remove checkpoints before `newest`. Keep the last `keep_last` (counting it) and one every `keep_every` steps.

    keep_last=0 keeps all, keep_every=0 keeps no others. Checkpoints that were saved by time are always removed. Each
    folder is renamed first, so an interrupted removal never leaves something that looks like a checkpoint.
    """
    for ending in (_REMOVED, PARTIAL):  # from an interrupted removal or save
        for rest in newest.parent.glob(f"{STEP_PREFIX}*{ending}"):
            shutil.rmtree(rest)
    earlier = earlier_checkpoints(newest)
    by_time = [folder for folder in earlier if (folder / BY_TIME).exists()]
    others = [folder for folder in earlier if folder not in by_time][keep_last - 1 :] if keep_last else []
    for folder in by_time + [each for each in others if not is_due(step_of(each), keep_every)]:
        shutil.rmtree(folder.rename(folder.with_name(folder.name + _REMOVED)))


def save_settings(folder: Path, config: Config) -> None:
    """Write the run's settings into a checkpoint, for `check_resumable`."""
    write_text_atomically(folder / SETTINGS, config.to_json() + "\n")


def check_resumable(checkpoint: Path, config: Config) -> None:
    """Refuse to resume from `checkpoint` with settings that would change the result. Raises CheckpointError.

    Free to change: where and how fast things run (layout, memory, workers, folders) and what is monitored. The number
    of steps may change if the learning rate does not depend on it, but not below the checkpoint's step. Model and
    training data may move: `check_same_inputs` compares their content.
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
            default = _BEFORE.get(name, _default(config, section, field))
            before = saved.get(section, {}).get(field, default)
            if name not in free and value != before:
                now, then = map(_as_option, (value, before))
                raise CheckpointError(
                    f"{name}={now}: {checkpoint} was written with {then}, and a resumed run must not change it; "
                    f"resume with {name}={then}, or start a new run."
                )


def _saved_settings(checkpoint: Path) -> dict[str, dict[str, object]]:
    """Return the settings of a checkpoint's run, by section. Raises CheckpointError."""
    path = checkpoint / SETTINGS
    try:
        saved = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: has no {SETTINGS}, so it is incomplete; resume from another.") from None
    except (OSError, JSONError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); resume from another checkpoint.") from None
    if not isinstance(saved, dict) or not all(isinstance(each, dict | None) for each in saved.values()):
        raise CheckpointError(f"{path}: does not hold the sections of a run; resume from another checkpoint.")
    return {section: fields or {} for section, fields in with_present_names(saved).items()}


def _as_option(value: object) -> str:
    """Return a value as written after --set, on one line."""
    plain = isinstance(value, str) and value.isprintable()
    return shortened(str(value) if plain else json.dumps(value))


def _default(config: Config, section: str, field: str) -> object:
    """Return the default of a setting as a checkpoint would hold it, or None if it has no default."""
    settings = getattr(config, section)
    info = type(settings).model_fields[field]
    if info.is_required():
        return None
    default = settings.model_copy(update={field: info.get_default(call_default_factory=True)})
    return default.model_dump(mode="json")[field]


def point_to(folder: Path) -> None:
    """Make the complete checkpoint in `folder` the latest of its run."""
    write_text_atomically(folder.with_name(_LATEST), folder.name + "\n")
