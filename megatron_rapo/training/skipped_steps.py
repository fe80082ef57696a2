"""Optimizer steps left out because loss or gradient were not finite: told, kept for inspection, and not too many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.forward_backward import Trained
from megatron_rapo.runtime.run_folder import RunFolder, step_name


class SkippedSteps:
    """Count the skipped steps of a run. `say` shows a message.

    RUN/not_finite gets the micro-batches of each, from every process that has the loss: a list of {field: tensor}.
    """

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._folder = RunFolder(config.run.folder).not_finite
        self._limit, self._say = config.optimizer.max_skipped_steps, say
        self._in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._in_a_row = state["in_a_row"]

    def watched(self, step: int, trained: Trained) -> Trained:
        """`trained` itself, an optimizer step of `step`.

        Raises RuntimeError where more than optimizer.max_skipped_steps in a row were skipped.
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
        said = (
            f"loss {means['loss']:.4g}, gradient norm {means['grad_norm']:.4g}; its micro-batches are in {self._folder}"
        )
        self._say(f"WARNING: an optimizer step of step {step} was skipped: {said}")
        if self._in_a_row > self._limit:
            raise RuntimeError(
                f"optimizer.max_skipped_steps={self._limit}: {self._in_a_row} optimizer steps in a row had a loss or a "
                f"gradient that is not finite (the last one {said}). Look at them; lower optimizer.lr or go on from an "
                "earlier checkpoint."
            )
        return trained
