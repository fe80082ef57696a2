"""Decide at which steps the penalty's share of the gradient is measured. That takes passes that train nothing.

The decision depends on counts, never on time: a repeated run measures at the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_rapo.runtime.interval import is_due

WHOLE, BY_REWARD = "", ("/low_reward", "/high_reward")
"""Endings of the names of measurements: all tokens, and the tokens of either half by reward."""
PASSES = 2  # forward and backward passes of a measurement: the penalty's gradient, and the rest's
BOUND = 20  # measurements cost at most a 20th of the run: 5 %
APART = 10  # minimum number of steps between two measurements

# Costs, in forward passes over one micro-batch. Each is the lowest estimate for any machine.
_FORWARD_BACKWARD = 3
_SAMPLE_AND_SCORE = 2  # one pass each
_GRADIENTS = 3  # for each set of gradients: set it to zero, sum it over ranks, compute its norm


class GradientShareSchedule:
    """The measurements of each step, by monitor.gradient_share_every_steps.

    With a number N, everything is measured at step 1 and then every N steps. With "auto", measurements are at least
    APART steps apart, and together cost at most 5 % of the run so far (estimated). If that is not enough for
    everything, only the share of all tokens is measured.
    """

    def __init__(self, every_steps: int | str, *, pipeline: int) -> None:
        self._every_steps, self._pipeline = every_steps, pipeline
        self._work = self._spent = 0  # costs so far: of the run, and of its measurements
        self._last = 1 - APART  # step of the last measurement

    def state_dict(self) -> dict[str, int]:
        """Return the state for a checkpoint."""
        return {"work": self._work, "spent": self._spent, "last": self._last}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a `state_dict`."""
        self._work, self._spent, self._last = state["work"], state["spent"], state["last"]

    def due(self, step: int, microbatches: Sequence[int]) -> tuple[str, ...]:
        """Return what to measure at `step`. Call this once at every step.

        `microbatches` has the number of micro-batches of each of its optimizer steps. Every rank has equally many.
        """
        measured = min(microbatches[0], self._pipeline)
        cost = PASSES * (_FORWARD_BACKWARD * self._slots(measured) + _GRADIENTS)
        self._work += sum(_FORWARD_BACKWARD * self._slots(count) + _GRADIENTS for count in microbatches)
        self._work += _SAMPLE_AND_SCORE * self._slots(sum(microbatches))
        for wanted in ((WHOLE, *BY_REWARD), (WHOLE,)):
            if self._is_due(step, len(wanted) * cost):
                self._spent, self._last = self._spent + len(wanted) * cost, step
                return wanted
        return ()

    def _is_due(self, step: int, cost: int) -> bool:
        if isinstance(self._every_steps, int):
            return is_due(step - 1, self._every_steps)
        return step - self._last >= APART and BOUND * (self._spent + cost) <= self._work

    def _slots(self, count: int) -> int:
        """Return the time of a pipeline for `count` micro-batches. The unit is that of one micro-batch on one stage."""
        return count + self._pipeline - 1
