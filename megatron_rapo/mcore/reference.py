"""The frozen reference policy: the weights that training started from, kept in host memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Reference:
    """A copy of the parameters at construction, which can take the policy's place for a scoring pass."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        pin = torch.cuda.is_available()
        self._weights = [torch.empty_like(p, device="cpu", pin_memory=pin).copy_(p.detach()) for p in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model's weights are the reference's; afterwards the policy's again, bit by bit.

        No second model is held on the device: the two sets of weights change places, one tensor at a time.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(weight)
            weight.copy_(current)
