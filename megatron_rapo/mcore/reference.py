"""The frozen reference policy: the weights that training started from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Reference:
    """A copy of the parameters at construction, which can take the policy's place for a scoring pass.

    On a GPU it is kept in host memory unless it is to be `on_device`. Where it is `at_hand`, in the parameters' own
    memory, changing places costs nothing.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, on_device: bool) -> None:
        self._parameters = list(parameters)
        self.at_hand = on_device or not torch.cuda.is_available()
        self._weights = [p.detach().clone() if self.at_hand else _on_host(p.detach()) for p in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model's weights are the reference's; afterwards the policy's again, bit by bit.

        Where it is not at hand the two sets of weights change places, one tensor at a time: no second model is held on
        the device.
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
