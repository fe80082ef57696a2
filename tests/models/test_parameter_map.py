import itertools

import pytest
import torch

from megatron_rapo.models import ModelShape, WeightReader, read_shape
from megatron_rapo.models.families import FAMILIES
from megatron_rapo.models.parameter_map import (
    EMBEDDING,
    FINAL_NORM,
    OUTPUT,
    TORCH_NORMS,
    TRANSFORMER_ENGINE_NORMS,
    Piece,
    Shard,
    engine_shards,
    fill,
    hf_shapes,
    layers_per_chunk,
    merge,
    padded_vocab_size,
    stages_of_layers,
    trainer_shards,
)
from tests.tiny_models import load_reference, save_tiny_model


def shape(**changed):
    fields = {
        "architecture": "Qwen2ForCausalLM",
        "num_layers": 2,
        "hidden_size": 8,
        "ffn_hidden_size": 12,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 2,
        "vocab_size": 24,
        "tied": False,
        "norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position": 64,
    }
    return ModelShape(**fields | changed)


SHAPES = [
    (shape(architecture=family, tied=tied, vocab_size=vocab, num_kv_heads=kv), tensor)
    for tied, vocab, kv, family, tensor in itertools.product((True, False), (24, 21), (1, 2, 4), FAMILIES, (1, 2, 4))
]
SHAPES += [(shape(head_dim=3, ffn_hidden_size=20, num_layers=1, vocab_size=23), 2)]  # heads wider than hidden / heads
IDS = [f"{m.architecture}-{'tied' if m.tied else 'untied'}-v{m.vocab_size}-kv{m.num_kv_heads}-tp{t}" for m, t in SHAPES]


def hf_weights(model, seed=0):
    """Return distinct random tensors by name, and a reader of their slices."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(size, generator=generator) for name, size in hf_shapes(model).items()}

    def read(name, axis, start, stop):
        return weights[name].narrow(axis, start, stop - start)

    return weights, read


def ranks(model, tensor, norms=TORCH_NORMS):
    return [trainer_shards(model, tensor=tensor, rank=rank, norms=norms) for rank in range(tensor)]


def filled(shard, read):
    local = torch.full(shard.shape, float("nan"))
    fill(local, shard, read)
    return local


@pytest.mark.parametrize(("model", "tensor"), SHAPES, ids=IDS)
def test_fill_then_merge_is_the_identity(model, tensor):
    weights, read = hf_weights(model)
    by_rank = ranks(model, tensor)
    found = {}
    for name in by_rank[0]:
        of_name = [by_name[name] for by_name in by_rank]
        for hf_name, value in merge([filled(shard, read) for shard in of_name], of_name):
            if name == OUTPUT and model.tied:
                assert torch.equal(value, found[hf_name])
            else:
                assert hf_name not in found
            found[hf_name] = value
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("model", "tensor"), SHAPES, ids=IDS)
def test_every_element_is_held_once(model, tensor):
    """Tensor ranks hold split parameters once, and norms once each. Tied embeddings are held twice."""
    whole = hf_shapes(model)
    by_rank = ranks(model, tensor)
    for name in by_rank[0]:
        counts = {}
        for shard in (by_name[name] for by_name in by_rank):
            taken = torch.zeros(shard.shape[shard.axis], dtype=torch.int64)
            for piece in shard.pieces:
                taken[piece.start : piece.start + piece.size] += 1
                assert piece.start + piece.size <= shard.shape[shard.axis]
                count = counts.setdefault(piece.hf_name, torch.zeros(whole[piece.hf_name], dtype=torch.int64))
                count.narrow(shard.axis, piece.hf_start, piece.size).add_(1)
            assert taken.max() <= 1 and (taken.min() == 1 or name in (EMBEDDING, OUTPUT))
        each = 1 if by_rank[0][name].split else tensor
        assert by_rank[0][name].split == ("norm" not in name)
        for hf_name, count in counts.items():
            assert torch.equal(count, torch.full_like(count, each)), (name, hf_name)
    held = [piece.hf_name for by_name in by_rank for shard in by_name.values() for piece in shard.pieces]
    assert set(held) == set(whole)


def numbered(model):
    """Make tensors: row i of q holds 100 + i, k 200 + i, v 300 + i, gate 400 + i, up 500 + i. Columns likewise."""
    first = {"q": 100, "k": 200, "v": 300, "gate": 400, "up": 500, "o": 600, "down": 700, "embed": 800, "lm": 900}

    def read(name, axis, start, stop):
        part = next(part for part in name.split(".") if part.partition("_")[0] in first)
        size = hf_shapes(model)[name]
        index = torch.arange(size[axis], dtype=torch.float32) + first[part.partition("_")[0]]
        full = index.view([-1 if i == axis else 1 for i in range(len(size))]).expand(size)
        return full.narrow(axis, start, stop - start)

    return read


def along(shard, read):
    """Return the values of a shard filled with numbered rows (or columns). They are equal along the other axis."""
    local = filled(shard, read)
    lines = local if shard.axis == 0 else local.T
    if lines.dim() == 2:
        assert (lines == lines[:, :1]).all()
        lines = lines[:, 0]
    return lines.int().tolist()


# 4 heads of 2 rows: q has rows 0 to 7; 2 KV heads: k and v have rows 0 to 3; heads 0 and 1 share KV head 0.
GROUP_0 = [100, 101, 102, 103, 200, 201, 300, 301]
GROUP_1 = [104, 105, 106, 107, 202, 203, 302, 303]
HALVES = [GROUP_0[:4], GROUP_0[4:], GROUP_1[:4], GROUP_1[4:]]  # of groups that two ranks share


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize(("tensor", "expected"), [(1, [GROUP_0 + GROUP_1]), (2, [GROUP_0, GROUP_1]), (4, HALVES)])
def test_qkv_rows_by_hand(tensor, expected, kind):
    model = shape()
    for by_name, rows in zip(ranks(model, tensor), expected, strict=True):
        shard = by_name[f"decoder.layers.1.self_attention.linear_qkv.{kind}"]
        assert along(shard, numbered(model)) == rows
        assert shard.shape == ((len(rows), 8) if kind == "weight" else (len(rows),))
        parts = {"qkv"[row // 100 - 1] for row in rows}
        names = {f"model.layers.1.self_attn.{part}_proj.{kind}" for part in parts}
        assert {piece.hf_name for piece in shard.pieces} == names


def test_each_head_its_own_group():
    """With 4 heads and 4 KV heads, tensor rank 1 of 2 has heads 2 and 3."""
    model = shape(num_kv_heads=4)
    shard = ranks(model, 2)[1]["decoder.layers.0.self_attention.linear_qkv.weight"]
    assert along(shard, numbered(model)) == [104, 105, 204, 205, 304, 305, 106, 107, 206, 207, 306, 307]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 12 gate rows and 12 up rows; each rank stacks its half of the one on its half of the other.
        ("mlp.linear_fc1.weight", [[*range(400, 406), *range(500, 506)], [*range(406, 412), *range(506, 512)]]),
        ("mlp.linear_fc2.weight", [[*range(700, 706)], [*range(706, 712)]]),  # columns
        ("self_attention.linear_proj.weight", [[*range(600, 604)], [*range(604, 608)]]),  # columns
    ],
)
def test_linear_layers_by_hand(name, expected):
    model = shape()
    found = [along(by_name[f"decoder.layers.0.{name}"], numbered(model)) for by_name in ranks(model, 2)]
    assert found == expected


@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_padding_is_zero(tied):
    """5 tokens on 2 ranks: 3 rows each, the last row is padding. On 4 ranks: 2 rows each, the last rank's are both."""
    model = shape(vocab_size=5, tied=tied, num_kv_heads=4)
    head = 800 if tied else 900
    for name, base in ((EMBEDDING, 800), (OUTPUT, head)):
        found = [along(by_name[name], numbered(model)) for by_name in ranks(model, 2)]
        assert found == [[base, base + 1, base + 2], [base + 3, base + 4, 0]]
        found = [along(by_name[name], numbered(model)) for by_name in ranks(model, 4)]
        assert found == [[base, base + 1], [base + 2, base + 3], [base + 4, 0], [0, 0]]


@pytest.mark.parametrize(("vocab", "tensor", "expected"), [(24, 4, 24), (21, 4, 24), (21, 1, 21), (5, 4, 8), (1, 2, 2)])
def test_padded_vocab_size(vocab, tensor, expected):
    assert padded_vocab_size(vocab, tensor) == expected


def test_norms_are_whole_on_every_rank():
    model = shape(num_layers=1)
    _, read = hf_weights(model)
    expected = {
        "decoder.layers.0.input_layernorm.weight": "model.layers.0.input_layernorm.weight",
        "decoder.layers.0.pre_mlp_layernorm.weight": "model.layers.0.post_attention_layernorm.weight",
        FINAL_NORM: "model.norm.weight",
    }
    for by_name in ranks(model, 2):
        for name, hf_name in expected.items():
            assert torch.equal(filled(by_name[name], read), read(hf_name, 0, 0, 8))


def test_transformer_engine_has_other_names_for_the_norms_and_nothing_else():
    renamed = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }

    def contents(shard):
        return shard.shape, shard.axis, shard.split, shard.pieces

    model = shape()
    expected = {}
    for name, shard in ranks(model, 2)[1].items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        expected[name] = contents(shard)
    found = {name: contents(shard) for name, shard in ranks(model, 2, TRANSFORMER_ENGINE_NORMS)[1].items()}
    assert found == expected
    assert sum("layer_norm_weight" in name for name in found) == 4  # 2 layers of 2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_hf_shapes_are_those_of_transformers(tmp_path, tied, num_kv_heads):
    folder = save_tiny_model(
        tmp_path, tied=tied, vocab_size=131, num_kv_heads=num_kv_heads, intermediate_size=160, num_layers=3
    )
    found = hf_shapes(read_shape(folder))
    expected = {name: tuple(parameter.shape) for name, parameter in load_reference(folder).named_parameters()}
    assert found == expected
    assert ("lm_head.weight" in found) != tied
    assert WeightReader(folder).names == set(found)


def test_merge_goes_by_where_pieces_belong_not_by_their_order():
    """Rank 0 holds rows 4, 5, 0, 1 and rank 1 rows 6, 7, 2, 3 of a tensor of 8."""
    pieces = [(Piece("w", 4, 0, 2), Piece("w", 0, 2, 2)), (Piece("w", 6, 0, 2), Piece("w", 2, 2, 2))]
    of_name = [Shard((4,), 0, True, each) for each in pieces]
    locals_by_rank = [torch.tensor([4, 5, 0, 1]), torch.tensor([6, 7, 2, 3])]
    [(name, value)] = merge(locals_by_rank, of_name)
    assert name == "w" and value.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("changed", "tensor", "field"),
    [
        ({}, 3, "num_heads=4"),
        ({"ffn_hidden_size": 13}, 2, "ffn_hidden_size=13"),
    ],
)
def test_a_tensor_size_that_does_not_divide_is_refused(changed, tensor, field):
    with pytest.raises(ValueError) as raised:
        trainer_shards(shape(**changed), tensor=tensor, rank=0, norms=TORCH_NORMS)
    assert str(raised.value) == (
        f"parallel.tensor={tensor}: does not divide the model's {field}; choose a tensor-parallel size that does."
    )


def test_kv_heads_that_neither_divide_nor_are_divided_are_refused():
    with pytest.raises(ValueError) as raised:
        trainer_shards(shape(num_heads=12, num_kv_heads=6), tensor=4, rank=0, norms=TORCH_NORMS)
    assert str(raised.value) == (
        "parallel.tensor=4: neither divides the model's num_kv_heads=6 nor is a multiple of it; choose a "
        "tensor-parallel size that does."
    )


@pytest.mark.parametrize("wrong", [(4, 7), (3, 8)])
def test_weights_of_another_shape_are_refused(wrong):
    """This includes a slice that broadcasting would accept."""
    model = shape()
    shard = ranks(model, 2)[0]["decoder.layers.0.self_attention.linear_qkv.weight"]
    with pytest.raises(ValueError) as raised:
        fill(torch.empty(shard.shape), shard, lambda *_: torch.zeros(wrong))
    assert str(raised.value) == (
        f"model.layers.0.self_attn.q_proj.weight: slice of shape {wrong} where config.json promises (4, 8); "
        "weights and config.json do not belong together."
    )


def test_a_slice_that_would_broadcast_is_refused():
    shard = ranks(shape(), 1)[0][FINAL_NORM]
    with pytest.raises(ValueError, match=r"slice of shape \(1,\) where config.json promises \(8,\)"):
        fill(torch.empty(8), shard, lambda *_: torch.zeros(1))


@pytest.mark.parametrize(
    ("num_layers", "chunks", "expected"),
    [
        (4, 1, [4]),
        (4, 2, [2, 2]),
        (5, 2, [3, 2]),  # the last has the output layer besides
        (5, 3, [2, 2, 1]),
        (5, 4, [1, 2, 1, 1]),
        (6, 4, [1, 2, 2, 1]),
        (7, 4, [2, 2, 2, 1]),
        (4, 4, [1, 1, 1, 1]),
    ],
)
def test_layers_per_chunk(num_layers, chunks, expected):
    assert layers_per_chunk(num_layers, chunks) == expected


def test_stages_of_layers():
    """Two stages have two chunks each, with [1, 2, 1, 1] layers. The first stage has chunks 0 and 2."""
    assert stages_of_layers(5, pipeline=2, virtual_pipeline=2) == [0, 1, 1, 0, 1]
    assert stages_of_layers(5, pipeline=2, virtual_pipeline=1) == [0, 0, 0, 1, 1]
    assert stages_of_layers(3, pipeline=1, virtual_pipeline=1) == [0, 0, 0]


# 4 heads of 2 rows, 2 KV heads. vLLM's rank has [q, k, v] of its heads.
@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (1, [[*range(100, 108), *range(200, 204), *range(300, 304)]]),
        (2, [[*range(100, 104), 200, 201, 300, 301], [*range(104, 108), 202, 203, 302, 303]]),
        (  # as many ranks as heads: neighbours have the same KV head
            4,
            [
                [100, 101, 200, 201, 300, 301],
                [102, 103, 200, 201, 300, 301],
                [104, 105, 202, 203, 302, 303],
                [106, 107, 202, 203, 302, 303],
            ],
        ),
    ],
)
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_the_engines_qkv_rows_by_hand(tensor, expected, kind):
    model = shape()
    name = f"model.layers.1.self_attn.qkv_proj.{kind}"
    found = [along(engine_shards(model, tensor=tensor, rank=rank)[name], numbered(model)) for rank in range(tensor)]
    assert found == expected


def test_the_engines_vocabulary_is_padded_to_a_multiple_of_64():
    model = shape(vocab_size=70, tied=False)
    for name, base in (("model.embed_tokens.weight", 800), ("lm_head.weight", 900)):
        found = [along(engine_shards(model, tensor=2, rank=rank)[name], numbered(model)) for rank in range(2)]
        assert found == [[base + i for i in range(64)], [base + i for i in range(64, 70)] + [0] * 58]
    assert "lm_head.weight" not in engine_shards(shape(tied=True), tensor=1, rank=0)


def test_query_and_key_norms_are_whole_on_every_rank():
    model = shape(architecture="Qwen3ForCausalLM")
    ours, theirs = ranks(model, 2)[1], engine_shards(model, tensor=4, rank=3)
    for part in "qk":
        shard = ours[f"decoder.layers.1.self_attention.{part}_layernorm.weight"]
        assert shard == theirs[f"model.layers.1.self_attn.{part}_norm.weight"]
        assert shard == Shard((2,), 0, False, (Piece(f"model.layers.1.self_attn.{part}_norm.weight", 0, 0, 2),))
