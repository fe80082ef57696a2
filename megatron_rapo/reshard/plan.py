"""Plan which rank sends which slice to which other, from the parameter map and the two layouts.

Every process holds a shard of the trainer and a shard of an engine. Slices already on the process are copied locally.
Others come from one of their data-parallel holders: from the one in the receiver's own replica, which is near, or from
the least-loaded one if that would be unfair. Only needed slices are sent. Every rank computes the same plan without
communication, so the plan imports neither megatron nor vllm, needs no process group, and can be computed for any rank
of any world.

Transfers are divided into rounds. In a round no rank sends and receives more than a bucket of bytes.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from megatron_rapo.config import Config
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import EMBEDDING, OUTPUT, Entry, NormNames, Shard, entries, stages_of_layers

FAIR = 0.02
"""A receiver's own replica sends while the most and the least loaded holder differ by at most this share."""


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """The trainer's layout and the engines', over the same `world` processes.

    Ranks count up over tensor, then context and data (here: replicas), then pipeline, as in Megatron's default order.
    An engine has `engine_tensor` consecutive ranks.
    """

    world: int
    tensor: int
    pipeline: int
    virtual_pipeline: int = 1
    engine_tensor: int

    @classmethod
    def of(cls, config: Config, world: int) -> Layouts:
        """Return the layouts of a run on `world` processes."""
        layout = config.parallel
        return cls(
            world=world,
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual_pipeline=layout.virtual_pipeline,
            engine_tensor=config.rollout.tensor,
        )

    @property
    def replicas(self) -> int:
        """Return the number of copies of the trainer's model: context- times data-parallel size."""
        return self.world // (self.tensor * self.pipeline)

    def rank(self, tensor: int, replica: int, stage: int) -> int:
        """Return the rank at these coordinates of the trainer."""
        return tensor + self.tensor * (replica + self.replicas * stage)


class Block(NamedTuple):
    """A rectangle of a parameter on one side: rows from `row`, columns from `column` (None: a vector)."""

    name: str
    row: int
    column: int | None


class Region(NamedTuple):
    """The overlap of a trainer's and an engine's shard, as rows and columns (None for a vector) of each."""

    source_row: int
    source_column: int | None
    row: int
    column: int | None
    rows: int
    columns: int | None

    @property
    def numel(self) -> int:
        return self.rows * (self.columns or 1)


@dataclass(frozen=True)
class Move:
    """A rectangle to copy from the trainer's parameter on one rank to the engine's on another."""

    source: Block
    destination: Block
    rows: int
    columns: int | None

    @property
    def numel(self) -> int:
        return self.rows * (self.columns or 1)


@dataclass(frozen=True)
class Route:
    """Regions of one parameter. Each of `destinations` gets them from the trainer on one of `sources` (ranks, int [N]).

    Source and destination are equal if the destination already holds the regions.
    """

    entry: Entry
    source_names: dict[int, str]  # the trainer's name of the parameter, by pipeline stage
    ranks_per_stage: int
    regions: tuple[Region, ...]
    destinations: np.ndarray
    sources: np.ndarray

    @property
    def numel(self) -> int:
        """Return how many numbers one destination gets."""
        return sum(region.numel for region in self.regions)

    def peers(self, rank: int) -> tuple[list[int], list[int]]:
        """Return the other ranks that `rank` sends to, and the ranks that it gets regions from (perhaps itself)."""
        mine = self.destinations == rank
        return self.destinations[(self.sources == rank) & ~mine].tolist(), self.sources[mine].tolist()

    def moves(self, source: int, chunk: int, chunks: int) -> list[Move]:
        """Return what `source` gives to a destination: of each region, the rows of part `chunk` of `chunks`."""
        name, moves = self.source_names[source // self.ranks_per_stage], []
        for region in self.regions:
            first, last = region.rows * chunk // chunks, region.rows * (chunk + 1) // chunks
            if first < last:
                from_ = Block(name, region.source_row + first, region.source_column)
                to = Block(self.entry.engine, region.row + first, region.column)
                moves.append(Move(from_, to, last - first, region.columns))
        return moves


@dataclass(frozen=True)
class Round:
    """One rank's transfers in one round. Moves between two ranks are in the same order on both."""

    copies: list[Move] = field(default_factory=list)
    sends: dict[int, list[Move]] = field(default_factory=lambda: defaultdict(list))  # by destination
    receives: dict[int, list[Move]] = field(default_factory=lambda: defaultdict(list))  # by source
    complete: list[str] = field(default_factory=list)  # engine parameters that are complete after this round


def plan(
    model: ModelShape, norms: NormNames, layouts: Layouts, *, rank: int, itemsize: int, bucket_bytes: int
) -> list[Round]:
    """Return what `rank` sends, receives and copies in each round.

    Every rank has the same number of rounds. In a round a rank sends and receives at most `bucket_bytes` together.
    Raises ValueError if a bucket cannot hold one row of every concurrent transfer.
    """
    rounds = [Round()]
    load = np.zeros(layouts.world)
    for wave in waves(model, norms, layouts):
        total, row = _traffic(wave, layouts.world, itemsize)
        if not (row < bucket_bytes).all():
            raise ValueError(
                f"reshard.bucket_mib: {bucket_bytes / 2**20:.3g} MiB cannot hold a row of {wave[0].entry.engine} for "
                f"every rank that it is exchanged with, {row.max() / 2**20:.3g} MiB; raise it."
            )
        mine = [(route, *route.peers(rank)) for route in wave]
        chunks = int(np.ceil(total / (bucket_bytes - row)).max(initial=1))
        for chunk in range(chunks):
            if chunk or (load + total).max() > bucket_bytes:
                rounds.append(Round())
                load = np.zeros(layouts.world)
            for route, sent_to, got_from in mine:
                for destination in sent_to:
                    rounds[-1].sends[destination] += route.moves(rank, chunk, chunks)
                for source in got_from:
                    incoming = rounds[-1].copies if source == rank else rounds[-1].receives[source]
                    incoming += route.moves(source, chunk, chunks)
        load = load + total if chunks == 1 else np.full(layouts.world, bucket_bytes)
        rounds[-1].complete.extend(dict.fromkeys(route.entry.engine for route in wave))
    return rounds


def waves(model: ModelShape, norms: NormNames, layouts: Layouts) -> Iterator[list[Route]]:
    """Yield all transfers of the world in waves. A wave has a parameter of every pipeline stage, so all stages send.

    Order: parameters outside layers, then one parameter of the first layer of each stage, then its next parameter, ...
    """
    stages = stages_of_layers(model.num_layers, pipeline=layouts.pipeline, virtual_pipeline=layouts.virtual_pipeline)
    turns = [stages[:layer].count(stage) for layer, stage in enumerate(stages)]  # a layer's position in its stage
    by_turn: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in entries(model, norms):
        if entry.trainer == OUTPUT and model.tied:
            continue  # the engine has only the embedding
        by_turn[(-1, "") if entry.layer is None else (turns[entry.layer], entry.name_in_layer)].append(entry)
    router = _Router(layouts)
    for _, together in sorted(by_turn.items(), key=lambda item: item[0][0]):  # stable: keeps the parameters' order
        yield [route for entry in together for route in router.routes(entry, _holders(entry, model, stages, layouts))]


def _holders(entry: Entry, model: ModelShape, stages: Sequence[int], layouts: Layouts) -> dict[int, str]:
    """Return the pipeline stages that hold the parameter, with its name there. Two stages hold a tied embedding."""
    last = layouts.pipeline - 1
    if entry.layer is not None:
        return {stages[entry.layer]: entry.trainer}
    if entry.trainer != EMBEDDING:
        return {last: entry.trainer}
    return {last: OUTPUT, 0: EMBEDDING} if model.tied else {0: EMBEDDING}


@dataclass(frozen=True)
class _Pair:
    """A tensor rank of the trainer and one of the engine: their common regions, and which ranks hold and need them."""

    regions: tuple[Region, ...]
    destinations: np.ndarray  # ranks, int [N]
    holders: np.ndarray  # ranks
    remote: np.ndarray  # bool [N]: the destination is not a holder
    preferred: np.ndarray  # for each remote destination, the holder (index) in its replica


class _Router:
    """Chooses the sources and counts what each rank already sends."""

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._sent = np.zeros(layouts.world)  # in numbers, not bytes
        self._pairs: dict[tuple[tuple[int, ...], str], list[_Pair]] = {}  # reused for every layer of a stage

    def routes(self, entry: Entry, names: dict[int, str]) -> Iterator[Route]:
        """Yield the routes of a parameter that the stages of `names` hold."""
        key = tuple(names), entry.name_in_layer
        if key not in self._pairs:
            self._pairs[key] = list(self._pair(entry, list(names)))
        for pair in self._pairs[key]:
            sources = pair.destinations
            if len(pair.preferred):
                numel = sum(region.numel for region in pair.regions)
                chosen = _fair(pair.preferred, self._sent[pair.holders], numel)
                self._sent[pair.holders] += numel * np.bincount(chosen, minlength=len(pair.holders))
                sources = pair.destinations.copy()
                sources[pair.remote] = pair.holders[chosen]
            per_stage = self._layouts.tensor * self._layouts.replicas
            yield Route(entry, names, per_stage, pair.regions, pair.destinations, sources)

    def _pair(self, entry: Entry, stages: Sequence[int]) -> Iterator[_Pair]:
        layouts, ranks = self._layouts, np.arange(self._layouts.world)
        replicas, block = layouts.replicas, layouts.tensor * layouts.replicas
        for engine_rank in range(layouts.engine_tensor):
            theirs = entry.holding.engine(layouts.engine_tensor, engine_rank)
            for tensor in range(layouts.tensor):
                ours = entry.holding.trainer(layouts.tensor, tensor)
                regions = common(ours, theirs)
                if not regions:
                    continue
                chosen = ranks % layouts.engine_tensor == engine_rank
                if not ours.split:  # every tensor rank holds it
                    chosen &= ranks % layouts.tensor == tensor
                destinations = ranks[chosen]
                if not len(destinations):
                    continue
                holders = np.array(
                    [layouts.rank(tensor, replica, stage) for stage in stages for replica in range(replicas)]
                )
                remote = ~np.isin(destinations, holders)
                others = destinations[remote]
                preferred = others // layouts.tensor % replicas + replicas * (others // block % len(stages))
                yield _Pair(regions, destinations, holders, remote, preferred)


def common(source: Shard, destination: Shard) -> tuple[Region, ...]:
    """Return the overlap of two shards of one parameter. Adjacent pieces are merged into one region."""
    assert source.axis == destination.axis and len(source.shape) == len(destination.shape)
    spans: list[tuple[int, int, int]] = []  # source start, destination start, size, along the axis
    for theirs in destination.pieces:
        for ours in source.pieces:
            if ours.hf_name != theirs.hf_name:
                continue
            first = max(ours.hf_start, theirs.hf_start)
            size = min(ours.hf_start + ours.size, theirs.hf_start + theirs.size) - first
            if size > 0:
                spans.append((ours.start + first - ours.hf_start, theirs.start + first - theirs.hf_start, size))
    merged: list[tuple[int, int, int]] = []
    for start, to, size in sorted(spans):
        if merged and (start, to) == (merged[-1][0] + merged[-1][2], merged[-1][1] + merged[-1][2]):
            start, to, size = merged[-1][0], merged[-1][1], merged.pop()[2] + size
        merged.append((start, to, size))
    if destination.axis == 1:
        return tuple(Region(0, start, 0, to, destination.shape[0], size) for start, to, size in merged)
    if len(destination.shape) == 1:
        return tuple(Region(start, None, to, None, size, None) for start, to, size in merged)
    return tuple(Region(start, 0, to, 0, size, destination.shape[1]) for start, to, size in merged)


def _fair(preferred: np.ndarray, sent: np.ndarray, numel: int) -> np.ndarray:
    """Return each receiver's holder (index): the preferred one, or the least-loaded one if loads would differ much."""
    counts = np.bincount(preferred, minlength=len(sent))
    after = sent + counts * numel
    if after.max() - after.min() <= max(numel, FAIR * after.max()):
        return preferred
    queue = [(already, holder) for holder, already in enumerate(sent.tolist())]
    heapq.heapify(queue)
    quota = np.zeros_like(counts)
    for _ in preferred:
        already, holder = queue[0]
        quota[holder] += 1
        heapq.heapreplace(queue, (already + numel, holder))
    chosen, moved = preferred.copy(), []
    for index, holder in enumerate(preferred):
        if quota[holder]:
            quota[holder] -= 1
        else:
            moved.append(index)
    chosen[moved] = np.repeat(np.arange(len(quota)), quota)
    return chosen


def _traffic(routes: Sequence[Route], world: int, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes that each rank sends and receives, [world]: in total, and for one row of every region."""
    total, row = np.zeros(world), np.zeros(world)
    for route in routes:
        remote = route.sources != route.destinations
        ends = np.concatenate([route.sources[remote], route.destinations[remote]])
        times = np.bincount(ends, minlength=world) * itemsize
        total += times * route.numel
        row += times * sum(region.columns or 1 for region in route.regions)
    return total, row
