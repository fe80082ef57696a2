"""Execute the plan: copy the trainer's shards into the engine's parameters, and prove that they arrived.

Large contiguous slices are sent from and received into the weights directly. Other slices are packed into one buffer,
which is as large as the largest round and kept for the run. Every method is collective over the world.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.config import Config
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import NormNames
from megatron_rapo.reshard.digest import Sums, digests, sums
from megatron_rapo.reshard.plan import Block, Layouts, Move, Round, plan

LARGE_BYTES = 256 * 2**10
"""A move of at least this size is sent as its own message, directly from or into the weights if contiguous."""


class ReshardError(RuntimeError):
    """An engine does not hold the trainer's weights."""


class EngineWeights(Protocol):
    """An engine's writable parameters on this rank, by vLLM's names."""

    keeps: bool
    """True: written values stay in place and can be read as the engine uses them. False: the engine packs them."""

    def target(self, name: str) -> Tensor:
        """Return the tensor to write the parameter into; the same tensor until the parameter is complete."""

    def complete(self, name: str) -> None:
        """Tell the engine that every element of the parameter is written."""


@dataclass
class Report:
    """Bytes and seconds of a resharding on this rank."""

    bytes_copied: int = 0  # within the rank
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # transfer, engine (packing), proof

    def scalars(self) -> dict[str, float]:
        """Return the numbers by the names of monitor/scalars.py."""
        seconds = {f"reshard/{part}_s": value for part, value in self.seconds.items()}
        moved = self.bytes_copied + self.bytes_sent + self.bytes_received
        return {
            **seconds,
            "reshard/copied_mib": self.bytes_copied / 2**20,
            "reshard/sent_mib": self.bytes_sent / 2**20,
            "reshard/received_mib": self.bytes_received / 2**20,
            "reshard/transfer_gb_per_s": moved / self.seconds["transfer"] / 1e9,
        }

    @contextmanager
    def timed(self, part: str, device: torch.device) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def make_resharder(config: Config, model: ModelShape, norms: NormNames, parameters: Mapping[str, Tensor]) -> Resharder:
    """Build this process's resharder in the default process group. `parameters` are the trainer's, by map names."""
    layouts = Layouts.of(config, dist.get_world_size())
    itemsize = next(iter(parameters.values())).element_size()
    bucket_bytes = config.reshard.bucket_mib << 20
    rounds = plan(model, norms, layouts, rank=dist.get_rank(), itemsize=itemsize, bucket_bytes=bucket_bytes)
    return Resharder(parameters, rounds)


class Resharder:
    """Moves this rank's part of the trainer's `parameters` (by the map's names). `rounds` is this rank's plan."""

    def __init__(
        self, parameters: Mapping[str, Tensor], rounds: Sequence[Round], *, large_bytes: int = LARGE_BYTES
    ) -> None:
        self._parameters, self._rounds, self._large_bytes = parameters, rounds, large_bytes
        first = next(iter(parameters.values()))
        self._dtype, self._device = first.dtype, first.device
        largest = max(_numel(round_.sends.values()) + _numel(round_.receives.values()) for round_ in rounds)
        self._into: dict[str, list[Move]] = defaultdict(list)  # by the engine's parameter
        for round_ in rounds:
            for move in chain(round_.copies, *round_.receives.values()):
                self._into[move.destination.name].append(move)
        self._buffer = torch.empty(largest, dtype=self._dtype, device=self._device)
        self._copied = sum(move.numel for round_ in rounds for move in round_.copies) * self._dtype.itemsize
        self._sent = sum(_numel(round_.sends.values()) for round_ in rounds) * self._dtype.itemsize
        self._received = sum(_numel(round_.receives.values()) for round_ in rounds) * self._dtype.itemsize

    def run(self, engine: EngineWeights, *, version: int, prove: bool) -> Report:
        """Write every parameter of `engine`. Raises ReshardError on every rank if the proof fails on any rank."""
        report = Report(bytes_copied=self._copied, bytes_sent=self._sent, bytes_received=self._received)
        held: dict[Move, Sums] = {}

        def look(name: str) -> None:
            if prove:
                with report.timed("proof", self._device):
                    for move in self._into[name]:
                        held[move] = sums(_view(engine.target(name), move.destination, move))

        for round_ in self._rounds:
            with report.timed("transfer", self._device):
                self._exchange(round_, engine.target)
            for name in round_.complete:
                if not engine.keeps:
                    look(name)
                with report.timed("engine", self._device):
                    engine.complete(name)
        if engine.keeps:
            for name in self._into:
                look(name)
        if prove:
            with report.timed("proof", self._device):
                self._compare(held, version)
        return report

    def _exchange(self, round_: Round, target: Callable[[str], Tensor]) -> None:
        """Send and receive this round's slices, and meanwhile copy the local ones."""
        free = self._buffer
        operations, packed = [], []

        def parcel(message: Sequence[Move]) -> Tensor:
            nonlocal free
            size = _numel([message])
            packet, free = free.split([size, len(free) - size])
            return packet

        def destination(move: Move) -> Tensor:
            return _view(target(move.destination.name), move.destination, move)

        for peer, moves in sorted(round_.receives.items()):
            for message in self._messages(moves):
                packet = _in_place(message, destination)
                if packet is None:
                    packet = parcel(message)
                    packed.append((message, packet))
                operations.append(dist.P2POp(dist.irecv, packet, peer))
        for peer, moves in sorted(round_.sends.items()):
            for message in self._messages(moves):
                packet = _in_place(message, self._source)
                if packet is None:
                    packet = parcel(message)
                    for move, part in _parts(message, packet):
                        part.copy_(self._source(move))
                operations.append(dist.P2POp(dist.isend, packet, peer))
        pending = dist.batch_isend_irecv(operations) if operations else []
        for move in round_.copies:
            destination(move).copy_(self._source(move))
        for request in pending:
            request.wait()
        for message, packet in packed:
            for move, part in _parts(message, packet):
                destination(move).copy_(part)

    def _messages(self, moves: Sequence[Move]) -> Iterator[Sequence[Move]]:
        """Yield messages: each large move alone, and all small ones together. Both ranks split the moves alike."""
        large = self._large_bytes // self._dtype.itemsize
        yield from ([move] for move in moves if move.numel >= large)
        if small := [move for move in moves if move.numel < large]:
            yield small

    def _source(self, move: Move) -> Tensor:
        return _view(self._parameters[move.source.name].detach(), move.source, move)

    def _compare(self, held: Mapping[Move, Sums], version: int) -> None:
        """Compare digests: every rank asks its sources for the digests of what it received, and refuses differences."""
        sends = _by_peer(round_.sends for round_ in self._rounds)
        receives = _by_peer(round_.receives for round_ in self._rounds)
        copies = [move for round_ in self._rounds for move in round_.copies]
        expected = self._expected([*copies, *(move for _, moves in sends for move in moves)])
        stamp = torch.tensor([version], device=self._device)
        said = {peer: torch.empty(1 + len(moves), dtype=torch.int64, device=self._device) for peer, moves in receives}
        operations = [dist.P2POp(dist.irecv, numbers, peer) for peer, numbers in said.items()]
        start = len(copies)
        for peer, moves in sends:
            numbers = torch.cat([stamp, expected[start : start + len(moves)]])
            operations.append(dist.P2POp(dist.isend, numbers, peer))
            start += len(moves)
        for request in dist.batch_isend_irecv(operations) if operations else []:
            request.wait()

        found = dict(zip(held, digests(list(held.values())).tolist(), strict=True))
        ours = [version, *expected[: len(copies)].tolist()]
        wrong = _differences(dist.get_rank(), version, copies, found, ours)
        for peer, moves in receives:
            wrong += _differences(peer, version, moves, found, said[peer].tolist())
        _refuse(wrong, self._device)

    def _expected(self, moves: Sequence[Move]) -> Tensor:
        """Return the digest of each move's source in this rank's shards, int64. Reads shared sources once."""
        rectangles = [(move.source, move.rows, move.columns) for move in moves]
        of_rectangle = {
            key: sums(self._source(move)) for key, move in dict(zip(rectangles, moves, strict=True)).items()
        }
        if not of_rectangle:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        number = {key: index for index, key in enumerate(of_rectangle)}
        chosen = torch.tensor([number[key] for key in rectangles], device=self._device)
        return digests(list(of_rectangle.values()))[chosen]


def _differences(
    source: int, version: int, moves: Sequence[Move], found: Mapping[Move, int], said: Sequence[int]
) -> list[str]:
    """Describe each difference from what rank `source` said: its version, and a digest of each move."""
    if said[0] != version:
        return [f"rank {source} sent weights of version {said[0]} instead of {version}"]
    return [
        f"{_place(move)} is not what rank {source} has in {move.source.name}"
        for move, theirs in zip(moves, said[1:], strict=True)
        if found[move] != theirs
    ]


def _refuse(wrong: Sequence[str], device: torch.device) -> None:
    """Raise ReshardError on every rank if any rank found a difference."""
    count = torch.tensor(len(wrong), device=device)
    dist.all_reduce(count)
    if not count:
        return
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, wrong[:_SHOWN])
    lines = [f"on rank {rank}, {line}" for rank, lines in enumerate(everyone) for line in lines]
    raise ReshardError(
        f"the engines do not hold the trainer's weights, in {int(count)} places: {'; '.join(lines[:_SHOWN])}"
        f"{'; ...' if count > _SHOWN else ''}. Nothing was sampled from them, and the last checkpoint is "
        "good. If it happens again on the same rank, suspect its memory or its links; otherwise report a bug."
    )


_SHOWN = 5


def _place(move: Move) -> str:
    block = move.destination
    columns = "" if block.column is None else f", columns {block.column} to {block.column + (move.columns or 0)}"
    return f"{block.name} (rows {block.row} to {block.row + move.rows}{columns})"


def _view(tensor: Tensor, block: Block, move: Move) -> Tensor:
    """Return the rectangle on one side of a move."""
    rows = tensor.narrow(0, block.row, move.rows)
    return rows if block.column is None or move.columns is None else rows.narrow(1, block.column, move.columns)


def _in_place(message: Sequence[Move], view: Callable[[Move], Tensor]) -> Tensor | None:
    """Return the flat memory of a message of one move if it is contiguous, else None."""
    if len(message) > 1 or not (only := view(message[0])).is_contiguous():
        return None
    return only.view(-1)


def _parts(moves: Sequence[Move], parcel: Tensor) -> Iterator[tuple[Move, Tensor]]:
    """Yield each move with its part of a message, in the move's shape."""
    for move, part in zip(moves, parcel.split([move.numel for move in moves]), strict=True):
        yield move, part if move.columns is None else part.view(move.rows, move.columns)


def _by_peer(rounds: Iterable[Mapping[int, list[Move]]]) -> list[tuple[int, list[Move]]]:
    """Return all moves to or from each rank, in the order of the rounds."""
    moves: dict[int, list[Move]] = defaultdict(list)
    for by_peer in rounds:
        for peer, some in by_peer.items():
            moves[peer] += some
    return sorted(moves.items())


def _numel(moves: Iterable[Sequence[Move]]) -> int:
    return sum(move.numel for some in moves for move in some)
