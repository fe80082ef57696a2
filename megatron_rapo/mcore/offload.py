"""Move gradients and optimizer state off the device while they are not used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_rapo.mcore import torch_adam


class TrainingState:
    """The state that only training needs: Megatron's gradient buffers, the optimizer's moments and master weights.

    With `offload` it is on the device only within `in_place()`. The storage behind the tensors is released and then
    allocated again, so every view of it stays valid. (Megatron's own `offload_to_cpu` copies to memory that is not
    pinned. In float32, where the optimizer updates the model's weights directly, it also moves these.)
    """

    def __init__(
        self, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, *, offload: bool
    ) -> None:
        self._chunks, self._optimizer, self._offloads = chunks, optimizer, offload
        self._away: list[tuple[torch.UntypedStorage, Tensor]] = []  # each with its content in host memory
        self._in_place = True
        if offload:
            self._offload()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Keep the state on the device within this context. Gradients start at zero. Do not nest."""
        if not self._offloads:
            yield
            return
        self._restore()
        try:
            yield
        finally:
            self._offload()

    def require(self) -> None:
        """Raise RuntimeError if the state is not on the device."""
        if not self._in_place:
            raise RuntimeError(
                "memory.offload_optimizer: gradients and optimizer state are away; train within "
                "Policy.training_state.in_place()."
            )

    def _offload(self) -> None:
        for storage in self._storages():
            content = _bytes(storage)
            pinned = content.is_cuda
            self._away.append((storage, torch.empty_like(content, device="cpu", pin_memory=pinned).copy_(content)))
            storage.resize_(0)
        for chunk in self._chunks:
            chunk.offload_grad_buffers(synchronize=False, empty_cache=False)
        torch.cuda.empty_cache()  # the engine takes memory from the device itself
        self._in_place = False

    def _restore(self) -> None:
        for chunk in self._chunks:
            chunk.restore_grad_buffers(synchronize=False)
        for storage, content in self._away:
            storage.resize_(content.numel())
            _bytes(storage).copy_(content)
        self._away.clear()
        self._in_place = True

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        """Yield the storages of the optimizer's tensors on the device, except the model's own."""
        weights = [parameter for chunk in self._chunks for parameter in chunk.parameters()]
        seen = {weight.untyped_storage().data_ptr() for weight in weights}
        for tensor in _tensors(self._optimizer):
            storage = tensor.untyped_storage()
            if tensor.device == weights[0].device and storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage


def _tensors(optimizer: MegatronOptimizer) -> Iterator[Tensor]:
    """Yield the tensors that an optimizer, or each optimizer of a chain, updates and keeps."""
    for part in torch_adam.parts(optimizer):
        if part.optimizer is None:  # a rank without parameters
            continue
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """Return a uint8 tensor over a whole storage."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
