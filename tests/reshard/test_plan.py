"""The plan is made for every rank and executed on tensors, in this one process."""

import time
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import (
    EMBEDDING,
    TORCH_NORMS,
    Piece,
    Shard,
    engine_shards,
    fill,
    stages_of_layers,
    trainer_shards,
)
from megatron_rapo.reshard.plan import Layouts, Region, common, plan, waves
from tests.models.test_parameter_map import hf_weights, shape

BIG = {"num_layers": 2, "num_heads": 8, "num_kv_heads": 4, "hidden_size": 16, "ffn_hidden_size": 24}


def layouts(world, tensor, pipeline, engine, virtual=1):
    return Layouts(world=world, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual, engine_tensor=engine)


CASES = {
    "TP1 -> TP1": (shape(**BIG), layouts(1, 1, 1, 1)),
    "TP2 -> TP1": (shape(**BIG), layouts(2, 2, 1, 1)),
    "TP2 -> TP2": (shape(**BIG), layouts(2, 2, 1, 2)),
    "TP2 -> TP4": (shape(**BIG), layouts(8, 2, 1, 4)),
    "TP4 -> TP2": (shape(**BIG), layouts(4, 4, 1, 2)),
    "PP2 -> TP2": (shape(**BIG), layouts(2, 1, 2, 2)),
    "PP2 tied -> TP1": (shape(**BIG, tied=True), layouts(2, 1, 2, 1)),
    "PP4 tied -> TP2": (shape(**BIG | {"num_layers": 5}, tied=True), layouts(8, 1, 4, 2)),
    "PP2 x VPP2, 5 layers -> TP1": (shape(**BIG | {"num_layers": 5}), layouts(2, 1, 2, 1, virtual=2)),
    "TP2 x PP2 x DP2 -> TP4": (shape(**BIG, vocab_size=21), layouts(8, 2, 2, 4)),
    "DP4 -> TP2": (shape(**BIG, architecture="LlamaForCausalLM"), layouts(4, 1, 1, 2)),
    "DP3 -> TP1": (shape(**BIG), layouts(3, 1, 1, 1)),
    "1 KV head, DP4 -> TP4": (shape(**BIG | {"num_kv_heads": 1}), layouts(4, 1, 1, 4)),
    "2 KV heads, TP2 x PP2 -> TP4": (shape(**BIG | {"num_kv_heads": 2}, vocab_size=133), layouts(4, 2, 2, 4)),
    "2 KV heads, DP8 -> TP8": (shape(**BIG | {"num_kv_heads": 2}), layouts(8, 1, 1, 8)),
}


def plans(model, where, bucket_bytes):
    return [
        plan(model, TORCH_NORMS, where, rank=rank, itemsize=4, bucket_bytes=bucket_bytes) for rank in range(where.world)
    ]


def coordinates(where, rank):
    """Return tensor rank and stage, from Megatron's order of ranks."""
    return rank % where.tensor, rank // (where.tensor * where.replicas)


def trainer_parameters(model, where, read):
    """Return each rank's parameters: its stage's part of the map, with the copy of a tied embedding."""
    stages = stages_of_layers(model.num_layers, pipeline=where.pipeline, virtual_pipeline=where.virtual_pipeline)
    everyone = []
    for rank in range(where.world):
        tensor, stage = coordinates(where, rank)
        mine = {}
        for name, shard in trainer_shards(model, tensor=where.tensor, rank=tensor, norms=TORCH_NORMS).items():
            if name.startswith("decoder.layers."):
                home = stages[int(name.split(".")[2])]
            else:
                home = 0 if name == EMBEDDING else where.pipeline - 1
            if home == stage:
                mine[name] = torch.full(shard.shape, float("nan"))
                fill(mine[name], shard, read)
        everyone.append(mine)
    return everyone


def view(tensor, block, move):
    rows = tensor[block.row : block.row + move.rows]
    return rows if block.column is None else rows[:, block.column : block.column + move.columns]


def carry_out(rounds_of_rank, sources, targets, bucket_bytes):
    """Execute the plan on all ranks in step. Count how often each element is written; check that both ends agree."""
    written = [{name: torch.zeros(t.shape, dtype=torch.int64) for name, t in mine.items()} for mine in targets]
    assert len({len(rounds) for rounds in rounds_of_rank}) == 1
    for now in zip(*rounds_of_rank, strict=True):
        under_way = Counter()
        for rank, round_ in enumerate(now):
            for peer, moves in round_.receives.items():
                assert peer != rank and moves == now[peer].sends[rank]
                under_way[rank] += 4 * sum(move.numel for move in moves)
            for peer, moves in round_.sends.items():
                assert peer != rank and moves == now[peer].receives[rank]
                under_way[rank] += 4 * sum(move.numel for move in moves)
            for source, move in [(rank, m) for m in round_.copies] + [
                (peer, m) for peer, moves in round_.receives.items() for m in moves
            ]:
                target = view(targets[rank][move.destination.name], move.destination, move)
                target.copy_(view(sources[source][move.source.name], move.source, move))
                view(written[rank][move.destination.name], move.destination, move).add_(1)
        assert max(under_way.values(), default=0) <= bucket_bytes
    return written


@pytest.mark.parametrize("bucket_bytes", [1 << 30, 4000], ids=["one bucket", "small buckets"])
@pytest.mark.parametrize(("model", "where"), CASES.values(), ids=CASES.keys())
def test_the_engines_hold_what_the_trainer_has(model, where, bucket_bytes):
    _, read = hf_weights(model)
    engines = [
        engine_shards(model, tensor=where.engine_tensor, rank=rank % where.engine_tensor) for rank in range(where.world)
    ]
    targets = [{name: torch.zeros(shard.shape) for name, shard in mine.items()} for mine in engines]
    rounds = plans(model, where, bucket_bytes)
    written = carry_out(rounds, trainer_parameters(model, where, read), targets, bucket_bytes)
    assert (len(rounds[0]) > 1) == (busiest(rounds) > bucket_bytes)
    for rank, mine in enumerate(engines):
        for name, shard in mine.items():
            expected = torch.zeros(shard.shape)
            fill(expected, shard, read)
            assert torch.equal(targets[rank][name], expected), (rank, name)
            covered = torch.zeros(shard.shape[shard.axis], dtype=torch.int64)
            for piece in shard.pieces:
                covered[piece.start : piece.start + piece.size] = 1
            lines = written[rank][name].movedim(shard.axis, 0)
            assert torch.equal(lines, covered.view(-1, *[1] * (lines.dim() - 1)).expand_as(lines)), (rank, name)
        complete = [name for round_ in rounds[rank] for name in round_.complete]
        assert sorted(complete) == sorted(mine)


def busiest(rounds_of_rank):
    """Return the most bytes that a rank sends and receives in a round."""
    ends = [[*round_.sends.values(), *round_.receives.values()] for rounds in rounds_of_rank for round_ in rounds]
    of_rounds = [4 * sum(move.numel for moves in end for move in moves) for end in ends]
    return np.reshape(of_rounds, (len(rounds_of_rank), -1)).sum(1).max()


def test_a_parameter_is_complete_when_its_last_element_has_come():
    model, where = CASES["TP2 x PP2 x DP2 -> TP4"]
    for rounds in plans(model, where, 4000):
        late = {name: index for index, round_ in enumerate(rounds) for name in round_.complete}
        for index, round_ in enumerate(rounds):
            incoming = [*round_.copies, *(move for moves in round_.receives.values() for move in moves)]
            assert all(index <= late[move.destination.name] for move in incoming)


def test_common_by_hand():
    """Megatron has [q0 q1 k0 v0 q2 q3 k1 v1] for two groups, vLLM [q0 q1 q2 q3 k0 k1 v0 v1]."""
    group_0 = Piece("q", 0, 0, 2), Piece("k", 0, 2, 1), Piece("v", 0, 3, 1)
    group_1 = Piece("q", 2, 4, 2), Piece("k", 1, 6, 1), Piece("v", 1, 7, 1)
    ours = Shard((8, 5), 0, True, (*group_0, *group_1))
    theirs = Shard((8, 5), 0, True, (Piece("q", 0, 0, 4), Piece("k", 0, 4, 2), Piece("v", 0, 6, 2)))
    found = {(r.source_row, r.row, r.rows) for r in common(ours, theirs)}
    assert found == {(0, 0, 2), (4, 2, 2), (2, 4, 1), (6, 5, 1), (3, 6, 1), (7, 7, 1)}
    assert all((r.columns, r.source_column, r.column) == (5, 0, 0) for r in common(ours, theirs))


def test_neighbours_are_one_region():
    """In one group q, k and v are adjacent on both sides. Columns 4 to 8 of a weight are one region too."""
    ours = Shard((4,), 0, True, (Piece("q", 0, 0, 2), Piece("k", 0, 2, 1), Piece("v", 0, 3, 1)))
    assert common(ours, ours) == (Region(0, None, 0, None, 4, None),)
    whole, half = Shard((3, 8), 1, True, (Piece("o", 0, 0, 8),)), Shard((3, 4), 1, True, (Piece("o", 4, 0, 4),))
    assert common(whole, half) == (Region(0, 4, 0, 0, 3, 4),)
    assert common(half, Shard((3, 4), 1, True, (Piece("o", 0, 0, 4),))) == ()


def sent_by(model, where):
    """Return how many numbers each rank sends and receives."""
    sent, received = np.zeros(where.world), np.zeros(where.world)
    for wave in waves(model, TORCH_NORMS, where):
        for route in wave:
            remote = route.sources != route.destinations
            sent += np.bincount(route.sources[remote], minlength=where.world) * route.numel
            received += np.bincount(route.destinations[remote], minlength=where.world) * route.numel
    return sent, received


@pytest.mark.parametrize(("world", "tensor"), [(1, 1), (2, 2), (8, 4), (64, 8), (12, 4)])
@pytest.mark.parametrize("kv_heads", [8, 16])
def test_nothing_is_sent_where_the_layouts_coincide(world, tensor, kv_heads):
    model = shape(num_heads=16, num_kv_heads=kv_heads, ffn_hidden_size=16, vocab_size=640)
    sent, received = sent_by(model, layouts(world, tensor, 1, tensor))
    assert not sent.any() and not received.any()


def test_a_tied_embedding_stays_where_it_is_on_the_last_stage():
    """Both stages have the tied embedding, so it is not sent."""
    model = shape(tied=True, vocab_size=6400)
    sent, _ = sent_by(model, layouts(2, 1, 2, 1))
    untied, _ = sent_by(replace(model, tied=False), layouts(2, 1, 2, 1))
    embedding = 6400 * model.hidden_size
    assert sent.sum() < embedding / 10 and untied.sum() - sent.sum() == 2 * embedding


def test_who_is_near_sends():
    """If loads are equal, every replica serves itself."""
    where = layouts(64, 4, 2, 2)
    for wave in waves(shape(**BIG), TORCH_NORMS, where):
        for route in wave:
            assert (route.sources // 4 % 8 == route.destinations // 4 % 8).all()


def test_who_has_sent_least_sends_where_the_replicas_differ():
    """Engines span two replicas. Without balance, replica 0 would send half of everything and replica 1 nothing."""
    sent, _ = sent_by(shape(**BIG | {"num_layers": 8}), layouts(8, 2, 1, 4))
    by_replica = sent.reshape(4, 2)
    assert (by_replica.max(0) <= 1.1 * by_replica.mean(0)).all() and by_replica.min() > 0


def test_a_bucket_too_small_is_refused():
    model, where = CASES["PP2 -> TP2"]
    with pytest.raises(ValueError, match=r"^reshard.bucket_mib: 3.81e-05 MiB cannot hold a row of .* raise it\.$"):
        plan(model, TORCH_NORMS, where, rank=0, itemsize=4, bucket_bytes=40)


def large(architecture, num_layers, hidden_size, ffn_hidden_size, num_heads, num_kv_heads, vocab_size):
    return ModelShape(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=ffn_hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        vocab_size=vocab_size,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_position=4096,
        tied=False,
    )


QWEN_7B = large("Qwen2ForCausalLM", 28, 3584, 18944, 28, 4, 152064)
QWEN_72B = large("Qwen2ForCausalLM", 80, 8192, 29568, 64, 8, 152064)
LLAMA_405B = large("LlamaForCausalLM", 126, 16384, 53248, 128, 8, 128256)
AT_SCALE = {
    "7B, TP4 x DP2 -> TP4": (QWEN_7B, layouts(8, 4, 1, 4)),
    "7B, TP2 x PP2 x DP2 -> TP4": (QWEN_7B, layouts(8, 2, 2, 4)),
    "7B, TP4 x DP16 -> TP2": (QWEN_7B, layouts(64, 4, 1, 2)),
    "72B, TP8 x PP4 x DP8 -> TP8": (QWEN_72B, layouts(256, 8, 4, 8)),
    "72B, TP4 x PP8 x DP16 -> TP8": (QWEN_72B, layouts(512, 4, 8, 8, virtual=2)),
    "72B, TP8 x DP8 -> TP16": (QWEN_72B, layouts(64, 8, 1, 16)),
    "405B, TP8 x PP16 x DP8 -> TP8": (LLAMA_405B, layouts(1024, 8, 16, 8)),
    "405B, TP8 x PP16 x DP8 -> TP16": (LLAMA_405B, layouts(1024, 8, 16, 16)),
    "405B, TP4 x PP8 x DP32 -> TP8": (LLAMA_405B, layouts(1024, 4, 8, 8)),
}


@pytest.mark.parametrize(("model", "where"), AT_SCALE.values(), ids=AT_SCALE.keys())
def test_at_scale(model, where):
    """Every rank gets every element once, from a rank that has it. Loads are balanced, and planning is fast."""
    started_s, by_name = time.process_time(), defaultdict(list)
    for wave in waves(model, TORCH_NORMS, where):
        for route in wave:
            by_name[route.entry.engine].append(route)
    routed_s = time.process_time() - started_s
    engines = [engine_shards(model, tensor=where.engine_tensor, rank=rank) for rank in range(where.engine_tensor)]
    assert set(by_name) == set(engines[0])
    stages = stages_of_layers(model.num_layers, pipeline=where.pipeline, virtual_pipeline=where.virtual_pipeline)
    for name, routes in by_name.items():
        entry = routes[0].entry
        if entry.layer in (None, 0, model.num_layers - 1):
            check_coverage(routes, [mine[name] for mine in engines], where)
        else:  # as in layer 0
            first = by_name[f"model.layers.0.{entry.name_in_layer}"]
            for ours, theirs in zip(routes, first, strict=True):
                assert ours.regions == theirs.regions and (ours.destinations == theirs.destinations).all()
        for route in routes:
            stage, tensor = route.sources // (where.tensor * where.replicas), route.sources % where.tensor
            assert set(np.unique(stage)) <= set(route.source_names)
            assert (tensor == tensor[0]).all()
        if entry.layer is not None:
            assert set(routes[0].source_names) == {stages[entry.layer]}

    sent, received = sent_by(model, where)
    assert sent.sum() == received.sum()
    by_kind = sent.reshape(where.pipeline, where.replicas, where.tensor)  # any replica could send instead of another
    assert (by_kind.max(1) <= 1.1 * by_kind.mean(1)).all()

    started_s = time.process_time()
    rounds = plan(model, TORCH_NORMS, where, rank=where.world - 1, itemsize=2, bucket_bytes=1 << 29)
    assert time.process_time() - started_s < 20 * routed_s
    assert sum(len(moves) for round_ in rounds for moves in round_.receives.values()) + sum(
        len(round_.copies) for round_ in rounds
    )


def check_coverage(routes, shards, where):
    """Check that each element of an engine shard comes from the same HF element, once for every rank."""
    trainer = [hf_indices(routes[0].entry.holding.trainer(where.tensor, tensor)) for tensor in range(where.tensor)]
    for engine_rank, shard in enumerate(shards):
        ranks = np.arange(engine_rank, where.world, where.engine_tensor)
        wanted, written = hf_indices(shard), np.zeros((shard.shape[shard.axis], 2), dtype=np.int64)
        for route in routes:
            if route.destinations[0] % where.engine_tensor != engine_rank:
                continue
            assert set(route.destinations) <= set(ranks) and len(set(route.destinations)) == len(route.destinations)
            for region in route.regions:
                here, there, size, other = (
                    (region.row, region.source_row, region.rows, region.columns)
                    if shard.axis == 0
                    else (region.column, region.source_column, region.columns, region.rows)
                )
                assert other == (shard.shape[1 - shard.axis] if len(shard.shape) == 2 else None)
                held = trainer[route.sources[0] % where.tensor][there : there + size]
                assert (held == wanted[here : here + size]).all()
                # Once for each of its ranks: so many, and so many different ones (by the sum of their numbers).
                written[here : here + size] += len(route.destinations), route.destinations.sum()
        assert (written == np.where(wanted[:, None] >= 0, (len(ranks), ranks.sum()), 0)).all()


def hf_indices(shard):
    """Return a number for each HF element along a shard's axis. -1 is padding."""
    indices = np.full(shard.shape[shard.axis], -1)
    for piece in shard.pieces:
        first = (sum(map(ord, piece.hf_name)) << 32) + piece.hf_start
        indices[piece.start : piece.start + piece.size] = np.arange(first, first + piece.size)
    return indices
