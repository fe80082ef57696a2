"""The parameter map: which slice of which Hugging Face tensor each Megatron parameter of each tensor rank holds.

The HF import, the HF export and the resharding into vLLM all read this one map. It is data: it imports neither
megatron nor vllm, and needs neither to be checked. A new family is one more table of parameters and a parity test.

Along one axis a Megatron shard is a run of pieces, each a range of rows (or columns) of one HF tensor:

- column-parallel weights are split over their rows, row-parallel ones over their columns;
- linear_qkv is interleaved by query group: [q of group 0, k 0, v 0, q of group 1, ...];
- linear_fc1 stacks this rank's gate rows on this rank's up rows;
- the embedding and the output layer are padded to a multiple of the tensor size with rows that no piece covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rapo.hf import ModelShape


@dataclass(frozen=True)
class Piece:
    """Local indices [start, start + size) along the parameter's axis hold those from hf_start of tensor hf_name."""

    hf_name: str
    hf_start: int
    start: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One Megatron parameter as one tensor-parallel rank holds it. Layer numbers in `name` count over all stages."""

    name: str
    shape: tuple[int, ...]
    axis: int  # the one that the pieces (and tensor parallelism, where `split`) run along
    split: bool  # over tensor ranks; otherwise each rank holds the same
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class NormNames:
    """Megatron's names for the two norms of a layer, which Transformer Engine fuses into the linear after them."""

    attention: str
    mlp: str


TORCH_NORMS = NormNames("input_layernorm.weight", "pre_mlp_layernorm.weight")
TRANSFORMER_ENGINE_NORMS = NormNames("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")

EMBEDDING, OUTPUT, FINAL_NORM = (
    "embedding.word_embeddings.weight",
    "output_layer.weight",
    "decoder.final_layernorm.weight",
)


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Rows of Megatron's embedding: the next multiple of the tensor-parallel size."""
    return -(-vocab_size // tensor) * tensor


def shards(model: ModelShape, *, tensor: int, rank: int, norms: NormNames) -> dict[str, Shard]:
    """Every parameter of the whole model, as rank `rank` of `tensor` tensor-parallel ranks holds its part.

    With tied embeddings the output layer is listed too (the last pipeline stage keeps a copy), over the same HF tensor.
    Raises ValueError where `tensor` does not divide heads, KV heads or the feed-forward size.
    """
    for field in ("num_heads", "num_kv_heads", "ffn_hidden_size"):
        if getattr(model, field) % tensor:
            raise ValueError(
                f"parallel.tensor={tensor}: does not divide the model's {field}={getattr(model, field)}; "
                "choose a tensor-parallel size that does."
            )
    table = [
        _vocabulary(EMBEDDING, "model.embed_tokens.weight", model, tensor, rank),
        *(shard for layer in range(model.num_layers) for shard in _layer(model, layer, tensor, rank, norms)),
        _whole(FINAL_NORM, "model.norm.weight", model.hidden_size),
        _vocabulary(OUTPUT, "model.embed_tokens.weight" if model.tied else "lm_head.weight", model, tensor, rank),
    ]
    return {shard.name: shard for shard in table}


def hf_shapes(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of every HF tensor of the model, in the map's order."""
    extents: dict[str, tuple[int, ...]] = {}
    for shard in shards(model, tensor=1, rank=0, norms=TORCH_NORMS).values():
        for hf_name, size in _hf_sizes(shard.pieces).items():
            extents[hf_name] = tuple(size if i == shard.axis else n for i, n in enumerate(shard.shape))
    return extents


def fill(local: Tensor, shard: Shard, read: Callable[[str, int, int, int], Tensor]) -> None:
    """Copy the shard's pieces into `local`, in place; padding becomes 0.

    `read(hf_name, axis, start, stop)` gives slices.
    Raises ValueError where a slice read has another shape than the model's configuration promises.
    """
    covered = sum(piece.size for piece in shard.pieces)
    if covered < shard.shape[shard.axis]:
        local.zero_()
    for piece in shard.pieces:
        source = read(piece.hf_name, shard.axis, piece.hf_start, piece.hf_start + piece.size)
        target = local.narrow(shard.axis, piece.start, piece.size)
        if source.shape != target.shape:
            raise ValueError(
                f"{piece.hf_name}: slice of shape {tuple(source.shape)} where config.json promises "
                f"{tuple(target.shape)}; weights and config.json do not belong together."
            )
        target.copy_(source)


def merge(locals_by_rank: Sequence[Tensor], shards_by_rank: Sequence[Shard]) -> Iterator[tuple[str, Tensor]]:
    """The whole HF tensors that one parameter's shards of all tensor ranks hold: the inverse of `fill`."""
    pairs = list(zip(locals_by_rank, shards_by_rank, strict=True))
    if not shards_by_rank[0].split:
        pairs = pairs[:1]
    axis = shards_by_rank[0].axis
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for local, shard in pairs:
        for piece in shard.pieces:
            part = local.narrow(axis, piece.start, piece.size)
            parts.setdefault(piece.hf_name, []).append((piece.hf_start, part))
    for hf_name, found in parts.items():
        yield hf_name, torch.cat([part for _, part in sorted(found, key=lambda item: item[0])], dim=axis)


def _hf_sizes(pieces: Sequence[Piece]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.hf_name] = sizes.get(piece.hf_name, 0) + piece.size
    return sizes


def _layer(model: ModelShape, layer: int, tensor: int, rank: int, norms: NormNames) -> list[Shard]:
    ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    attention, mlp = ours + "self_attention.", ours + "mlp."
    table = [
        _whole(ours + norms.attention, theirs + "input_layernorm.weight", hidden),
        _qkv(attention + "linear_qkv.weight", theirs, "weight", (hidden,), model, tensor, rank),
        _columns(attention + "linear_proj.weight", theirs + "self_attn.o_proj.weight", hidden,
                 model.num_heads * model.head_dim, tensor, rank),
        _whole(ours + norms.mlp, theirs + "post_attention_layernorm.weight", hidden),
        _gate_up(mlp + "linear_fc1.weight", theirs, hidden, ffn, tensor, rank),
        _columns(mlp + "linear_fc2.weight", theirs + "mlp.down_proj.weight", hidden, ffn, tensor, rank),
    ]  # fmt: skip
    if model.qkv_bias:
        table.append(_qkv(attention + "linear_qkv.bias", theirs, "bias", (), model, tensor, rank))
    return table


def _whole(name: str, hf_name: str, size: int) -> Shard:
    return Shard(name, (size,), 0, False, (Piece(hf_name, 0, 0, size),))


def _columns(name: str, hf_name: str, rows: int, columns: int, tensor: int, rank: int) -> Shard:
    size = columns // tensor
    return Shard(name, (rows, size), 1, True, (Piece(hf_name, rank * size, 0, size),))


def _gate_up(name: str, layer: str, hidden: int, ffn: int, tensor: int, rank: int) -> Shard:
    size = ffn // tensor
    pieces = tuple(
        Piece(f"{layer}mlp.{part}_proj.weight", rank * size, i * size, size) for i, part in enumerate(("gate", "up"))
    )
    return Shard(name, (2 * size, hidden), 0, True, pieces)


def _vocabulary(name: str, hf_name: str, model: ModelShape, tensor: int, rank: int) -> Shard:
    rows = padded_vocab_size(model.vocab_size, tensor) // tensor
    real = max(0, min(rows, model.vocab_size - rank * rows))
    return Shard(name, (rows, model.hidden_size), 0, True, (Piece(hf_name, rank * rows, 0, real),) if real else ())


def _qkv(
    name: str, layer: str, kind: str, trailing: tuple[int, ...], model: ModelShape, tensor: int, rank: int
) -> Shard:
    d, queries = model.head_dim, model.num_heads // model.num_kv_heads * model.head_dim
    groups = model.num_kv_heads // tensor
    pieces, start = [], 0
    for group in range(rank * groups, (rank + 1) * groups):
        for part, size in (("q", queries), ("k", d), ("v", d)):
            pieces.append(Piece(f"{layer}self_attn.{part}_proj.{kind}", group * size, start, size))
            start += size
    return Shard(name, (start, *trailing), 0, True, tuple(pieces))
