"""Draw problems in a new random order each epoch, resumable at any point."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from megatron_rapo.errors import InputError


class EpochOrder:
    """An endless stream of the indices 0 .. num_items - 1, each once per epoch.

    An index that the current step already has is postponed, and taken first as soon as it is allowed. So a step that
    crosses the end of an epoch has no problem twice, and each problem still comes once per epoch. The permutation
    depends only on `seed` and the epoch number, so the state is a few integers.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        if num_items < 1 or seed < 0:
            raise ValueError(f"num_items={num_items}, seed={seed}: need at least 1 item and a seed of 0 or more.")
        self._num_items = num_items
        self._seed = seed
        self._put_off: list[int] = []  # postponed indices, in the order in which they will be taken
        self._seek(epoch=0, position=0)

    def take(self, n: int, *, without: Collection[int] = ()) -> list[int]:
        """Return the next `n` indices, all different and none in `without`, from as many epochs as needed."""
        if n < 0:
            raise ValueError(f"n={n}: cannot take a negative number of items; pass n >= 0.")
        if n + (others := len(set(without))) > self._num_items:
            raise ValueError(f"n={n}: there are {self._num_items} items, of which {others} are excluded; take fewer.")
        taken: dict[int, None] = {}
        waiting: list[int] = []
        earlier = iter(self._put_off)
        while len(taken) < n:
            index = next(earlier, None)
            if index is None:
                index = self._next()
            if index in taken or index in without:
                waiting.append(index)
            else:
                taken[index] = None
        self._put_off = [*waiting, *earlier]
        return list(taken)

    def state_dict(self) -> dict[str, Any]:
        """Return the stream's state. `position` is the number of items of `epoch` that were taken or postponed."""
        return {
            "num_items": self._num_items,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "put_off": list(self._put_off),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of `state_dict`. Raises InputError if it has another seed or number of items."""
        for name, present in (("num_items", self._num_items), ("seed", self._seed)):
            if state[name] != present:
                raise InputError(
                    f"{name}={present}: the saved data order has {name}={state[name]} and would continue differently; "
                    "resume with the data and the seed of the saved run, or start a new one."
                )
        self._seek(epoch=state["epoch"], position=state["position"])
        self._put_off = list(state.get("put_off", ()))  # an older checkpoint has none

    def _next(self) -> int:
        """Return the next index of the permutation."""
        index = int(self._permutation[self._position])
        self._position += 1
        if self._position == self._num_items:
            self._seek(epoch=self._epoch + 1, position=0)
        return index

    def _seek(self, *, epoch: int, position: int) -> None:
        # RandomState, because NumPy guarantees its streams forever. Those of Generator may change with a release, and
        # then a run could not be resumed after an upgrade.
        bits = np.random.MT19937(np.random.SeedSequence([self._seed, epoch]))
        self._permutation = np.random.RandomState(bits).permutation(self._num_items)
        self._epoch = epoch
        self._position = position
