"""Keep the frozen reference policy: the weights that training started from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Reference:
    """A copy of the parameters at construction, which can replace the policy's weights for a scoring pass.

    On a GPU the copy is in host memory, unless `on_device` is true. If it is `at_hand` (in the same memory as the
    parameters), swapping costs nothing.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, on_device: bool) -> None:
        self._parameters = list(parameters)
        self.at_hand = on_device or not torch.cuda.is_available()
        self._weights = [p.detach().clone() if self.at_hand else _on_host(p.detach()) for p in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the reference's weights within this context, and restore the policy's afterwards, bit by bit.

        If the copy is not at hand, the two sets of weights are swapped one tensor at a time, so the device never holds
        a second model.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for index, (parameter, weight) in enumerate(zip(self._parameters, self._weights, strict=True)):
            if self.at_hand:
                parameter.data, self._weights[index] = weight, parameter.data
            else:
                current = parameter.detach().clone()
                parameter.copy_(weight)
                weight.copy_(current)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)
