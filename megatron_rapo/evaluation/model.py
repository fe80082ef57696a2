"""Find the model to evaluate: a Hugging Face folder, or a run's checkpoint, which is converted to one."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import xxhash

from megatron_rapo.checkpoints.folders import MODEL_FILES, CheckpointError, latest_checkpoint
from megatron_rapo.checkpoints.manifest import MANIFEST, whole
from megatron_rapo.checkpoints.tensors import METADATA
from megatron_rapo.config import ConfigError
from megatron_rapo.convert.files import ConversionError
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.runtime.atomic_write import explained, write_text_atomically
from megatron_rapo.runtime.run_folder import STEP_PREFIX, RunFolder

ORIGIN = "converted_from.json"  # in a complete converted folder: digest of the checkpoint


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model to evaluate."""

    path: Path  # the Hugging Face folder, or the checkpoint
    files: Path  # folder with its config.json and tokenizer
    is_checkpoint: bool

    @classmethod
    def find(cls, path: Path) -> EvaluatedModel:
        """Find the model at `path`: a Hugging Face folder, RUN (its latest checkpoint) or RUN/checkpoints/step-N.

        Any other path counts as a Hugging Face folder; its reader says what is missing. Raises ConfigError.
        """
        if (checkpoints := RunFolder(path).checkpoints).is_dir():
            try:
                path = latest_checkpoint(checkpoints)
            except CheckpointError:
                raise ConfigError(
                    f"model.path={path}: a run without a complete checkpoint; wait for its first one, or name a "
                    "Hugging Face folder."
                ) from None
        if not (path / METADATA).exists():
            if RunFolder.of_checkpoint(path) and path.parent.is_dir() and not path.exists():
                raise ConfigError(f"model.path={path}: no such checkpoint; {_there(path.parent)}")
            return cls(path=path, files=path, is_checkpoint=False)
        if not RunFolder.of_checkpoint(path.resolve()) or not (path / MANIFEST).exists():
            raise ConfigError(
                f"model.path={path}: a Megatron checkpoint, but not RUN/checkpoints/step-N of a run; convert it with "
                "megatron-rapo convert megatron-to-hf, and name the Hugging Face folder."
            )
        return cls(path=path, files=path / MODEL_FILES, is_checkpoint=True)

    def digest(self) -> str:
        """Return a digest of the weights that does not depend on their path.

        For a checkpoint it is that of the manifest, which has the files' digests. A Hugging Face folder is read whole.
        """
        if self.is_checkpoint:
            return xxhash.xxh3_128_hexdigest((self.path / MANIFEST).read_bytes())
        files = sorted(self.path.glob("*.safetensors"))
        return xxhash.xxh3_128_hexdigest(json.dumps([whole(file) for file in files]).encode())

    @property
    def hf_folder(self) -> Path:
        """Return the Hugging Face folder. For a checkpoint it is RUN/converted/step-N, which `prepare` makes."""
        return self._run.converted / self.path.resolve().name if self._run else self.path

    @property
    def _run(self) -> RunFolder | None:
        """Return the run of a checkpoint, or None for a Hugging Face folder."""
        return RunFolder.of_checkpoint(self.path.resolve()) if self.is_checkpoint else None

    def prepare(self) -> None:
        """Convert a checkpoint to `hf_folder`, in one process, and keep it for the next time. Raises ConversionError.

        A folder from another checkpoint of the same step is replaced.
        """
        if not self._run:
            return
        folder = self.hf_folder
        try:
            folder.parent.mkdir(exist_ok=True)
            with open(self._run.converting_lock, "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another evaluation may be converting
                self._make(folder)
        except OSError as error:
            raise ConversionError(
                f"{folder}: could not be converted from {self.path}: {explained(error, folder)}"
            ) from None

    def _make(self, folder: Path) -> None:
        origin, made_from = folder / ORIGIN, json.dumps({"checkpoint": self.digest()})
        if not (origin.is_file() and origin.read_text() == made_from):
            shutil.rmtree(folder, ignore_errors=True)
            megatron_to_hf(
                self.path, folder, like=None, dtype=None, max_shard_size="5GB", processes=1, progress=lambda _: None
            )
            write_text_atomically(origin, made_from)


def _there(checkpoints: Path) -> str:
    """List the checkpoints, for messages."""
    names = sorted(path.parent.name for path in checkpoints.glob(f"{STEP_PREFIX}*/{METADATA}"))
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}." if names else "there is none yet."
