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
_BEFORE: dict[str, object] = {"rollout.stop": [], "rollout.stop_token_ids": [], "data.template_digest": ""}
"""Values that settings had, in effect, before they were settings: those of a checkpoint that does not name them."""


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


def earlier_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints beside `folder` of steps before it, newest first."""
    found = [path for path in folder.parent.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted((path for path in found if checkpoint_step(path) < checkpoint_step(folder)), reverse=True)


def prune(newest: Path, *, keep_last: int, keep_every: int) -> None:
    """Remove the checkpoints before `newest`, but for the last ones (`newest` among them) and every so many steps.

    What is removed loses its name first, so that no rest of one can be taken for a checkpoint. 0 keeps all, or none.
    """
    for ending in (_REMOVED, PARTIAL):  # of a removal and of a save that were interrupted
        for rest in newest.parent.glob(f"{_PREFIX}*{ending}"):
            shutil.rmtree(rest)
    if not keep_last:
        return
    for folder in earlier_checkpoints(newest)[keep_last - 1 :]:
        if not keep_every or checkpoint_step(folder) % keep_every:
            shutil.rmtree(folder.rename(folder.with_name(folder.name + _REMOVED)))


def save_settings(folder: Path, config: Config) -> None:
    """Keep the settings of a checkpoint with it, for `check_resumable`."""
    (folder / SETTINGS).write_text(config.to_json() + "\n")


def check_resumable(checkpoint: Path, config: Config) -> None:
    """Refuse to go on from `checkpoint` with settings under which it would be another run. Raises CheckpointError.

    Free to change are where and how fast things run (layout, memory, workers, folders), what is watched, and the number
    of steps where the learning rate does not depend on it.
    """
    try:
        saved = json.loads((checkpoint / SETTINGS).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: holds no {SETTINGS}, so it is not whole; resume from another.") from None
    free = _FREE | ({"run.steps"} if config.optimizer.schedule == "constant" else set())
    for section, present in config.model_dump(mode="json").items():
        if section in _FREE_SECTIONS:
            continue
        for field, value in present.items():
            name = f"{section}.{field}"
            before = saved[section].get(field, _BEFORE.get(name))
            if name not in free and value != before:
                now, then = (v if isinstance(v, str) else json.dumps(v) for v in (value, before))  # as --set takes it
                raise CheckpointError(
                    f"{name}={now}: {checkpoint} was written with {then}, and the run would not go on as the same one; "
                    f"resume with {name}={then}, or start a new run."
                )


def point_to(folder: Path) -> None:
    """Make the whole checkpoint in `folder` the latest of its run."""
    pointer = folder.with_name(_LATEST + PARTIAL)
    pointer.write_text(folder.name + "\n")
    pointer.rename(folder.with_name(_LATEST))
