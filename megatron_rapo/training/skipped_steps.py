"""Report optimizer steps that were skipped because loss or gradient were not finite, and save their micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.forward_backward import Trained
from megatron_rapo.runtime.run_folder import RunFolder, step_name


class SkippedSteps:
    """Counts the skipped steps of a run. `say` shows a message.

    Every process that has the loss writes the micro-batches of each to RUN/not_finite: a list of {field: tensor}.
    """

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._folder = RunFolder(config.run.folder).not_finite
        self._limit, self._say = config.optimizer.max_skipped_steps, say
        self._in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return the state for a checkpoint."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a `state_dict`."""
        self._in_a_row = state["in_a_row"]

    def watched(self, step: int, trained: Trained) -> Trained:
        """Return `trained`, one optimizer step of `step`, after counting it.

        Raises RuntimeError if more than optimizer.max_skipped_steps in a row were skipped.
        """
        means = trained.means
        if not means["skipped"]:
            self._in_a_row = 0
            return trained
        self._in_a_row += 1
        self._folder.mkdir(exist_ok=True)
        name = f"{step_name(step)}-{self._in_a_row}-rank-{dist.get_rank()}.pt"
        if trained.batches:
            torch.save([vars(batch) for batch in trained.batches], self._folder / name)
        values = f"loss {means['loss']:.4g}, gradient norm {means['grad_norm']:.4g}"
        said = f"{values}; its micro-batches are in {self._folder}"
        self._say(f"WARNING: an optimizer step of step {step} was skipped: {said}")
        if self._in_a_row > self._limit:
            raise RuntimeError(
                f"optimizer.max_skipped_steps={self._limit}: {self._in_a_row} optimizer steps in a row had a loss or a "
                f"gradient that is not finite (the last one {said}). Look at them; lower optimizer.lr or go on from an "
                "earlier checkpoint."
            )
        return trained
