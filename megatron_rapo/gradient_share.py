"""When the penalty's share of the gradient is measured, which takes passes that train nothing.

By counts, never by the clock: a run and its repetition measure at the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PASSES = 6  # forward and backward, of a measurement: penalty and rest, of all tokens and of either half by reward
BOUND = 20  # measuring is to cost at most a 20th of the run: 5 %
APART = 10  # steps between two measurements, at least

# Costs, in forward passes over one micro-batch. What varies much between machines is reckoned at the least.
_FORWARD_BACKWARD = 3
_SAMPLE_AND_SCORE = 2  # one pass each
_GRADIENTS = 3  # of each set of gradients: zeroed, summed over ranks, their norm


class GradientShareSchedule:
    """The steps at which the share is measured, by monitor.gradient_share_every_steps.

    With a number at step 1 and every so many steps on. With "auto" as soon as it has become affordable: when all
    measurements, the next one among them, are estimated to cost at most 5 % of what the run has done, and at least
    APART steps after the last one.
    """

    def __init__(self, every_steps: int | str, *, pipeline: int) -> None:
        self._every_steps, self._pipeline = every_steps, pipeline
        self._work = self._spent = 0  # of the run so far
        self._last = 1 - APART  # step of the last measurement

    def state_dict(self) -> dict[str, int]:
        """Return the state for a checkpoint."""
        return {"work": self._work, "spent": self._spent, "last": self._last}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._work, self._spent, self._last = state["work"], state["spent"], state["last"]

    def due(self, step: int, microbatches: Sequence[int]) -> bool:
        """Return whether `step` is to be measured; to be asked once at every step.

        `microbatches` are those of each of its optimizer steps, as many on every rank.
        """
        measured = min(microbatches[0], self._pipeline)
        cost = PASSES * (_FORWARD_BACKWARD * self._slots(measured) + _GRADIENTS)
        self._work += sum(_FORWARD_BACKWARD * self._slots(count) + _GRADIENTS for count in microbatches)
        self._work += _SAMPLE_AND_SCORE * self._slots(sum(microbatches))
        if isinstance(self._every_steps, int):
            due = self._every_steps > 0 and (step - 1) % self._every_steps == 0
        else:
            due = step - self._last >= APART and BOUND * (self._spent + cost) <= self._work
        if due:
            self._spent, self._last = self._spent + cost, step
        return due

    def _slots(self, count: int) -> int:
        """Return the time that a pipeline takes for `count` micro-batches, by that of one on one stage."""
        return count + self._pipeline - 1
