"""The order in which problems are drawn: a new permutation every epoch, resumable anywhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from megatron_rapo.errors import InputError


class EpochOrder:
    """An endless stream of the indices 0 .. num_items - 1, each once an epoch.

    The permutation depends on `seed` and the epoch's number alone, so the state is two integers.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        if num_items < 1 or seed < 0:
            raise ValueError(f"num_items={num_items}, seed={seed}: need at least 1 item and a seed of 0 or more.")
        self._num_items = num_items
        self._seed = seed
        self._seek(epoch=0, position=0)

    def take(self, n: int) -> list[int]:
        """The next `n` indices, across as many epochs as they need."""
        if n < 0:
            raise ValueError(f"n={n}: cannot take fewer than no items; pass n >= 0.")
        taken: list[int] = []
        while len(taken) < n:
            piece = self._permutation[self._position : self._position + n - len(taken)]
            taken += piece.tolist()
            self._position += len(piece)
            if self._position == self._num_items:
                self._seek(epoch=self._epoch + 1, position=0)
        return taken

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands; `position` is the number of items taken from `epoch`."""
        return {
            "num_items": self._num_items,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go where `state_dict` was taken. Raises InputError for the state of another order."""
        for name, present in (("num_items", self._num_items), ("seed", self._seed)):
            if state[name] != present:
                raise InputError(
                    f"{name}={present}: the saved data order has {name}={state[name]} and would go on elsewhere; "
                    "resume with the data and the seed of the saved run, or start a new one."
                )
        self._seek(epoch=state["epoch"], position=state["position"])

    def _seek(self, *, epoch: int, position: int) -> None:
        # RandomState, because NumPy freezes its streams for ever; Generator's may change with a release,
        # and a run could not be resumed after an upgrade.
        bits = np.random.MT19937(np.random.SeedSequence([self._seed, epoch]))
        self._permutation = np.random.RandomState(bits).permutation(self._num_items)
        self._epoch = epoch
        self._position = position
