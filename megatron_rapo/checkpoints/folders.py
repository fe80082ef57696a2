"""Where a run's checkpoints are, and which of them a run goes on from.

A checkpoint is one folder `step-000042`, written as `step-000042.partial` and renamed when it is whole; `latest`
beside it is a text file with the name of the newest whole one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from megatron_rapo.config import Config
from megatron_rapo.errors import InputError

CHECKPOINTS = "checkpoints"  # folder of a run's checkpoints within run.folder
MODEL_FILES = "hf"  # folder within a checkpoint, of what belongs to a model besides its weights
SETTINGS = "settings.json"  # in a checkpoint: what the run was set to
INPUTS = "inputs.json"  # in a checkpoint: digests of the model's files and of the problems (inputs.py)
BY_TIME = "saved_by_time"  # empty file in a checkpoint that goes when a newer one is there
PARTIAL = ".partial"  # ending of the folder that a checkpoint is written into
_LATEST, _PREFIX, _REMOVED = "latest", "step-", ".removed"
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


class CheckpointError(InputError):
    """A checkpoint that is not there or cannot be used."""


def checkpoint_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint of `step` under `root`."""
    return root / f"{_PREFIX}{step:06d}"


def checkpoint_step(folder: Path) -> int:
    """The step after which the checkpoint in `folder` was written."""
    return int(folder.name.removeprefix(_PREFIX))


def latest_checkpoint(root: Path) -> Path:
    """The newest whole checkpoint under `root`. Raises CheckpointError where there is none."""
    pointer = root / _LATEST
    if not pointer.exists():
        raise CheckpointError(f"{root}: no checkpoint to resume from; start without --resume.")
    folder = root / pointer.read_text().strip()
    if not folder.is_dir():
        raise CheckpointError(f"{pointer}: names {folder.name}, which is not there; write the name of one that is.")
    return folder


def has_checkpoint(root: Path) -> bool:
    """Whether a save under `root` ever came to its end."""
    names = (path.name.removeprefix(_PREFIX) for path in root.glob(f"{_PREFIX}*"))
    return (root / _LATEST).exists() or any(name.isdecimal() for name in names)


def earlier_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints beside `folder` of steps before it, newest first."""
    found = [path for path in folder.parent.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted((path for path in found if checkpoint_step(path) < checkpoint_step(folder)), reverse=True)


def prune(newest: Path, *, keep_last: int, keep_every: int) -> None:
    """Remove the checkpoints before `newest`, but for the last ones (`newest` among them) and every so many steps.

    What is removed loses its name first, so that no rest of one can be taken for a checkpoint. 0 keeps all, or none.
    Checkpoints that were saved for the time's sake are removed in any case.
    """
    for ending in (_REMOVED, PARTIAL):  # of a removal and of a save that were interrupted
        for rest in newest.parent.glob(f"{_PREFIX}*{ending}"):
            shutil.rmtree(rest)
    earlier = earlier_checkpoints(newest)
    by_time = [folder for folder in earlier if (folder / BY_TIME).exists()]
    others = [folder for folder in earlier if folder not in by_time][keep_last - 1 :] if keep_last else []
    for folder in by_time + [each for each in others if not keep_every or checkpoint_step(each) % keep_every]:
        shutil.rmtree(folder.rename(folder.with_name(folder.name + _REMOVED)))


def save_settings(folder: Path, config: Config) -> None:
    """Keep the settings of a checkpoint with it, for `check_resumable`."""
    (folder / SETTINGS).write_text(config.to_json() + "\n")


def check_resumable(checkpoint: Path, config: Config) -> None:
    """Refuse to go on from `checkpoint` with settings under which it would be another run. Raises CheckpointError.

    Free to change are where and how fast things run (layout, memory, workers, folders), what is watched, and the number
    of steps where the learning rate does not depend on it, but not to fewer than `checkpoint` has. Model and training
    data may lie elsewhere: `check_same_inputs` compares what they hold.
    """
    try:
        saved = json.loads((checkpoint / SETTINGS).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: holds no {SETTINGS}, so it is not whole; resume from another.") from None
    if checkpoint_step(checkpoint) > config.run.steps:
        raise CheckpointError(
            f"run.steps={config.run.steps}: {checkpoint} was written after step {checkpoint_step(checkpoint)}, and a "
            f"run does not go back; set run.steps to {checkpoint_step(checkpoint)} or more, or start a new run."
        )
    free = _FREE | ({"run.steps"} if config.optimizer.schedule == "constant" else set())
    if (checkpoint / INPUTS).exists():
        free |= _INPUTS
    for section, present in config.model_dump(mode="json").items():
        if section in _FREE_SECTIONS:
            continue
        for field, value in present.items():
            default = _default(config, section, field)  # of a setting that the checkpoint is older than
            name, before = f"{section}.{field}", saved.get(section, {}).get(field, default)
            if name not in free and value != before:
                now, then = (v if isinstance(v, str) else json.dumps(v) for v in (value, before))  # as --set takes it
                raise CheckpointError(
                    f"{name}={now}: {checkpoint} was written with {then}, and the run would not go on as the same one; "
                    f"resume with {name}={then}, or start a new run."
                )


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
    """Make the whole checkpoint in `folder` the latest of its run."""
    pointer = folder.with_name(_LATEST + PARTIAL)
    pointer.write_text(folder.name + "\n")
    pointer.rename(folder.with_name(_LATEST))
