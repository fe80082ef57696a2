"""When the penalty's share of the gradient is measured, which takes passes that train nothing.

By counts, never by the clock: a run and its repetition measure at the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_rapo.runtime.interval import is_due

WHOLE, BY_REWARD = "", ("/low_reward", "/high_reward")
"""What is measured, by the ending of its name: all tokens, and either half by reward."""
PASSES = 2  # forward and backward, of each of them: the penalty, and the rest
BOUND = 20  # measuring is to cost at most a 20th of the run: 5 %
APART = 10  # steps between two measurements, at least

# Costs, in forward passes over one micro-batch. What varies much between machines is reckoned at the least.
_FORWARD_BACKWARD = 3
_SAMPLE_AND_SCORE = 2  # one pass each
_GRADIENTS = 3  # of each set of gradients: zeroed, summed over ranks, their norm


class GradientShareSchedule:
    """What is measured at which step, by monitor.gradient_share_every_steps.

    With a number everything, at step 1 and every so many steps on. With "auto" what is affordable, APART steps after
    the last measurement at the earliest: all measurements, the next one among them, are to cost at most 5 % of what the
    run has done, by estimate. Where that is not enough for everything, the share of all tokens is measured alone.
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

    def due(self, step: int, microbatches: Sequence[int]) -> tuple[str, ...]:
        """Return what is to be measured at `step`; to be asked once at every step.

        `microbatches` are those of each of its optimizer steps, as many on every rank.
        """
        measured = min(microbatches[0], self._pipeline)
        cost = PASSES * (_FORWARD_BACKWARD * self._slots(measured) + _GRADIENTS)
        self._work += sum(_FORWARD_BACKWARD * self._slots(count) + _GRADIENTS for count in microbatches)
        self._work += _SAMPLE_AND_SCORE * self._slots(sum(microbatches))
        found: tuple[str, ...] = ()
        for wanted in ((WHOLE, *BY_REWARD), (WHOLE,)):
            if not found and self._is_due(step, len(wanted) * cost):
                found = wanted
        if found:
            self._spent, self._last = self._spent + len(found) * cost, step
        return found

    def _is_due(self, step: int, cost: int) -> bool:
        if isinstance(self._every_steps, int):
            return is_due(step - 1, self._every_steps)
        return step - self._last >= APART and BOUND * (self._spent + cost) <= self._work

    def _slots(self, count: int) -> int:
        """Return the time that a pipeline takes for `count` micro-batches, by that of one on one stage."""
        return count + self._pipeline - 1
