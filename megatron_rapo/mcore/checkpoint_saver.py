"""Save checkpoints atomically while training continues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_rapo.checkpoints.folders import (
    BY_TIME,
    INPUTS,
    MODEL_FILES,
    CheckpointError,
    point_to,
    prune,
    save_settings,
)
from megatron_rapo.checkpoints.input_digests import Inputs
from megatron_rapo.checkpoints.manifest import Range, whole, write_manifest
from megatron_rapo.mcore import checkpoint_writer
from megatron_rapo.mcore.checkpoint import content
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models.hf_weights import read_model_files, write_model_files
from megatron_rapo.runtime.atomic_write import explained, partial_of, put_in_place
from megatron_rapo.runtime.distributed import everywhere, on_first_rank
from megatron_rapo.runtime.run_folder import step_name


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    folder: Path
    partial: Path
    by_time: bool
    request: AsyncRequest
    writing: Future[checkpoint_writer.Outcome]


class Saver:
    """Saves checkpoints of `policy` under `root`, one at a time. Every method is collective over the world.

    With checkpoint.async_save a thread of each process writes from copies in host memory. The checkpoint gets its name
    at the first `poll` or `finish` after all processes have written. Raises CheckpointError on every process if one
    could not write; earlier checkpoints stay as they are.

    Saving reads nothing outside `root`: the model's configuration and tokenizer are read once, at construction.
    """

    def __init__(self, root: Path, policy: Policy, inputs: Inputs | None = None) -> None:
        """Read the model's files. `inputs` are saved in each checkpoint, for `check_same_inputs`."""
        self._root, self._policy, self._inputs = root, policy, inputs
        self._model_files = read_model_files(policy.config.model.path) if dist.get_rank() == 0 else {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None

    def save(self, step: int, trainer: dict[str, Any], *, by_time: bool = False) -> Path:
        """Start to save the policy after `step`, together with the `trainer`'s state. Returns the checkpoint's folder.

        A checkpoint `by_time` is removed when a newer one exists.
        """
        self.finish()
        folder = self._root / step_name(step)
        partial = partial_of(folder)
        asynchronous = self._policy.config.checkpoint.async_save
        with self._all_or_nothing(partial):
            on_first_rank(lambda: _make_empty(partial))
            checkpoint_writer.use_own_queue()
            with self._policy.training_state.in_place():
                request = dist_checkpointing.save(
                    content(self._policy, trainer),
                    str(partial),
                    get_default_save_sharded_strategy("torch_dist"),
                    async_sharded_save=True,
                )
                files = checkpoint_writer.content_of(request, copied=asynchronous)
        writing = self._thread.submit(checkpoint_writer.write, files)
        self._pending = _Pending(folder, partial, by_time, request, writing)
        if not asynchronous:
            self.finish()
        return folder

    def poll(self) -> None:
        """Finish the pending checkpoint if every process has written its part."""
        if self._pending and _on_all(self._pending.writing.done()):
            self.finish()

    def finish(self) -> None:
        """Wait for the pending checkpoint, and make it the latest one."""
        if not self._pending:
            return
        pending, self._pending = self._pending, None
        with self._all_or_nothing(pending.partial):
            outcome = everywhere(pending.writing.result)
            checkpoint_writer.finish(pending.request, outcome)
            everyone: list[dict[str, list[Range]]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyone, outcome.digests)
            digests = {file: ranges for of_rank in everyone for file, ranges in of_rank.items()}
            on_first_rank(lambda: self._name(pending, digests))

    def _name(self, pending: _Pending, digests: dict[str, list[Range]]) -> None:
        """Add the files that every checkpoint has, and give it its name."""
        config, partial, folder = self._policy.config, pending.partial, pending.folder
        save_settings(partial, config)
        write_model_files(self._model_files, partial / MODEL_FILES)
        if self._inputs:
            (partial / INPUTS).write_text(self._inputs.to_json() + "\n")
        if pending.by_time:
            (partial / BY_TIME).touch()
        others = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()]
        write_manifest(partial, digests | {name: whole(partial / name) for name in others if name not in digests})
        put_in_place(partial, folder)
        point_to(folder)
        prune(folder, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every)

    @contextmanager
    def _all_or_nothing(self, partial: Path) -> Iterator[None]:
        """Turn an OSError within this context into a CheckpointError, and remove the partial checkpoint."""
        try:
            yield
        except OSError as error:
            problem = explained(error, partial)
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"{partial}: the checkpoint could not be saved: {problem} Those before it are untouched, and --resume "
                "goes on from the latest."
            ) from error


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _on_all(fact: bool) -> bool:
    value = torch.tensor(int(fact))
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value)
