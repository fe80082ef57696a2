"""The parameter map: where every Hugging Face tensor lives in Megatron and in vLLM.

The HF import, the HF export and the resharding all read this one map. It is data: it imports neither megatron nor
vllm, and needs neither to be checked. Both sides fuse the same tensors into the same parameters (q, k and v; gate and
up), each in its own order, so that one entry says what a parameter is called on either side and how a tensor-parallel
rank of either holds it. Which parameters a layer has is the family's matter (models/families.py).

Along one axis a shard is a run of pieces, each a range of rows (or columns) of one HF tensor:

- column-parallel weights are split over their rows, row-parallel ones over their columns;
- Megatron interleaves linear_qkv by query group, [q of group 0, k 0, v 0, q of group 1, ...], and splits that evenly,
  in the middle of groups where there are more ranks than groups; vLLM's qkv_proj is [q, k, v], and where it has more
  ranks than there are KV heads, neighbouring ranks hold the same one;
- linear_fc1 and gate_up_proj stack a rank's gate rows on its up rows;
- the vocabulary is padded with rows that no piece covers: to a multiple of the tensor size in Megatron, of 64 in vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rapo.models import ModelShape
from megatron_rapo.models.families import ATTENTION_NORM, MLP_NORM, LayerParameter


@dataclass(frozen=True)
class Piece:
    """Local indices [start, start + size) along the parameter's axis hold those from hf_start of tensor hf_name."""

    hf_name: str
    hf_start: int
    start: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One parameter as one tensor-parallel rank holds it."""

    shape: tuple[int, ...]
    axis: int  # the one that the pieces (and tensor parallelism, where `split`) run along
    split: bool  # over tensor ranks; otherwise each rank holds the same
    pieces: tuple[Piece, ...]


NormNames = Mapping[str, str]
"""Names of a layer's norms where Megatron's differ from those of the families (models/families.py)."""
TORCH_NORMS: NormNames = {}
TRANSFORMER_ENGINE_NORMS: NormNames = {  # which fuses each into the linear after it
    ATTENTION_NORM.trainer: "self_attention.linear_qkv.layer_norm_weight",
    MLP_NORM.trainer: "mlp.linear_fc1.layer_norm_weight",
}

EMBEDDING, OUTPUT, FINAL_NORM = (
    "embedding.word_embeddings.weight",
    "output_layer.weight",
    "decoder.final_layernorm.weight",
)
ENGINE_VOCABULARY_MULTIPLE = 64
"""vLLM's DEFAULT_VOCAB_PADDING_SIZE."""


def padded_vocab_size(vocab_size: int, multiple: int) -> int:
    """Rows of an embedding padded to the next multiple."""
    return -(-vocab_size // multiple) * multiple


def layers_per_chunk(num_layers: int, chunks: int) -> list[int]:
    """How many layers each of the `chunks` (pipeline x virtual pipeline) model chunks has, from the first to the last.

    As even as can be; what is left over goes to the middle ones first and to the last one last, since the first has
    the embedding besides and the last the output layer and the loss.
    """
    even, left = divmod(num_layers, chunks)
    by_need = [*range(1, chunks - 1), 0, chunks - 1][:chunks]
    return [even + (chunk in by_need[:left]) for chunk in range(chunks)]


def stages_of_layers(num_layers: int, *, pipeline: int, virtual_pipeline: int) -> list[int]:
    """The pipeline rank that holds each layer. Chunks are dealt out in turn (Megatron's interleaved schedule)."""
    counts = layers_per_chunk(num_layers, pipeline * virtual_pipeline)
    return [chunk % pipeline for chunk, count in enumerate(counts) for _ in range(count)]


# How a tensor-parallel rank holds a parameter, in the trainer and in the engine.


@dataclass(frozen=True)
class Whole:
    """Every rank holds all of it: norms."""

    hf_name: str
    size: int

    def trainer(self, _tensor: int, _rank: int) -> Shard:
        return Shard((self.size,), 0, False, (Piece(self.hf_name, 0, 0, self.size),))

    engine = trainer


@dataclass(frozen=True)
class Columns:
    """Split over its columns: row-parallel linear layers."""

    hf_name: str
    rows: int
    columns: int

    def trainer(self, tensor: int, rank: int) -> Shard:
        size = self.columns // tensor
        return Shard((self.rows, size), 1, True, (Piece(self.hf_name, rank * size, 0, size),))

    engine = trainer


@dataclass(frozen=True)
class Stacked:
    """Tensors of as many rows each, every one split over its rows, a rank's parts one below the other: gate and up."""

    hf_names: tuple[str, ...]
    rows: int
    columns: int

    def trainer(self, tensor: int, rank: int) -> Shard:
        size = self.rows // tensor
        pieces = tuple(Piece(name, rank * size, i * size, size) for i, name in enumerate(self.hf_names))
        return Shard((len(pieces) * size, self.columns), 0, True, pieces)

    engine = trainer


@dataclass(frozen=True)
class QueryKeyValue:
    """q, k and v of all heads, split over query groups."""

    hf_pattern: str  # of which {} is q, k or v
    trailing: tuple[int, ...]  # the columns of a weight, nothing of a bias
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def trainer(self, tensor: int, rank: int) -> Shard:
        """Even parts of the interleaved rows, whole groups or (of fewer KV heads than ranks) pieces of one."""
        d, queries = self.head_dim, self.num_heads // self.num_kv_heads * self.head_dim
        rows = [
            (part, group * size, size)
            for group in range(self.num_kv_heads)
            for part, size in (("q", queries), ("k", d), ("v", d))
        ]
        everything = self._shard(rows)
        size = everything.shape[0] // tensor
        return narrowed(everything, rank * size, (rank + 1) * size)

    def engine(self, tensor: int, rank: int) -> Shard:
        queries = self.num_heads // tensor * self.head_dim
        heads, copies = max(1, self.num_kv_heads // tensor), max(1, tensor // self.num_kv_heads)
        keys = heads * self.head_dim
        first = rank // copies * keys
        return self._shard([("q", rank * queries, queries), ("k", first, keys), ("v", first, keys)])

    def _shard(self, rows: Sequence[tuple[str, int, int]]) -> Shard:
        """From (part, first row of its HF tensor, number of rows), one below the other."""
        pieces, start = [], 0
        for part, hf_start, size in rows:
            pieces.append(Piece(self.hf_pattern.format(part), hf_start, start, size))
            start += size
        return Shard((start, *self.trailing), 0, True, tuple(pieces))


@dataclass(frozen=True)
class Vocabulary:
    """A row for every token, and padding: the embedding and the output layer."""

    hf_name: str
    vocab_size: int
    columns: int

    def trainer(self, tensor: int, rank: int) -> Shard:
        return self._shard(padded_vocab_size(self.vocab_size, tensor) // tensor, rank)

    def engine(self, tensor: int, rank: int) -> Shard:
        return self._shard(padded_vocab_size(self.vocab_size, ENGINE_VOCABULARY_MULTIPLE) // tensor, rank)

    def _shard(self, rows: int, rank: int) -> Shard:
        real = max(0, min(rows, self.vocab_size - rank * rows))
        return Shard((rows, self.columns), 0, True, (Piece(self.hf_name, rank * rows, 0, real),) if real else ())


Holding = Whole | Columns | Stacked | QueryKeyValue | Vocabulary


@dataclass(frozen=True)
class Entry:
    """One parameter: its name on either side, and how it is held there. Names in layers count over all stages."""

    trainer: str
    engine: str
    holding: Holding
    layer: int | None = None  # None: before the first layer (EMBEDDING) or after the last

    @property
    def name_in_layer(self) -> str:
        """The engine's name without what differs between layers; whole of what is in none."""
        return self.engine.removeprefix(f"model.layers.{self.layer}.")


def entries(model: ModelShape, norms: NormNames) -> list[Entry]:
    """Every parameter of the model, from the embedding to the output layer.

    With tied embeddings the output layer is listed too (Megatron's last pipeline stage keeps a copy, vLLM does not),
    over the same HF tensor.
    """
    hidden, embedding, head = model.hidden_size, "model.embed_tokens.weight", "lm_head.weight"
    head = embedding if model.tied else head
    return [
        Entry(EMBEDDING, embedding, Vocabulary(embedding, model.vocab_size, hidden)),
        *(entry for layer in range(model.num_layers) for entry in _layer(model, layer, norms)),
        Entry(FINAL_NORM, "model.norm.weight", Whole("model.norm.weight", hidden)),
        Entry(OUTPUT, head, Vocabulary(head, model.vocab_size, hidden)),
    ]


def _layer(model: ModelShape, layer: int, norms: NormNames) -> Iterator[Entry]:
    for parameter in model.family.layer:
        trainer = norms.get(parameter.trainer, parameter.trainer)
        engine = f"model.layers.{layer}.{parameter.engine}"
        yield Entry(f"decoder.layers.{layer}.{trainer}", engine, _holding(model, parameter, engine), layer)


def _holding(model: ModelShape, parameter: LayerParameter, engine: str) -> Holding:
    rows, *columns = model.extent(parameter)
    match parameter.holding:
        case "whole":
            return Whole(engine, rows)
        case "row_parallel":
            return Columns(engine, rows, *columns)
        case "qkv":
            pattern = engine.replace("qkv_proj", "{}_proj")
            return QueryKeyValue(pattern, tuple(columns), model.num_heads, model.num_kv_heads, model.head_dim)
        case "gate_up":
            names = (engine.replace("gate_up_proj", "gate_proj"), engine.replace("gate_up_proj", "up_proj"))
            return Stacked(names, rows // len(names), *columns)


def unsplittable(model: ModelShape, tensor: int) -> str | None:
    """Why `tensor` ranks cannot split the model (Megatron's rules, which are vLLM's too); None where they can."""
    for field in ("num_heads", "ffn_hidden_size"):
        if getattr(model, field) % tensor:
            return f"does not divide the model's {field}={getattr(model, field)}"
    if model.num_kv_heads % tensor and tensor % model.num_kv_heads:
        return f"neither divides the model's num_kv_heads={model.num_kv_heads} nor is a multiple of it"
    return None


def trainer_shards(model: ModelShape, *, tensor: int, rank: int, norms: NormNames) -> dict[str, Shard]:
    """Every parameter of the whole model by Megatron's name, as rank `rank` of `tensor` holds its part.

    Raises ValueError where `tensor` cannot split this model.
    """
    problem = unsplittable(model, tensor)
    if problem:
        raise ValueError(f"parallel.tensor={tensor}: {problem}; choose a tensor-parallel size that does.")
    return {entry.trainer: entry.holding.trainer(tensor, rank) for entry in entries(model, norms)}


def engine_shards(model: ModelShape, *, tensor: int, rank: int) -> dict[str, Shard]:
    """Every parameter of the whole model by vLLM's name, as rank `rank` of `tensor` holds its part."""
    return {entry.engine: entry.holding.engine(tensor, rank) for entry in entries(model, TORCH_NORMS)}


def hf_shapes(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of every HF tensor of the model, in the map's order."""
    extents: dict[str, tuple[int, ...]] = {}
    for shard in trainer_shards(model, tensor=1, rank=0, norms=TORCH_NORMS).values():
        for hf_name, size in _hf_sizes(shard.pieces).items():
            extents[hf_name] = tuple(size if i == shard.axis else n for i, n in enumerate(shard.shape))
    return extents


def narrowed(shard: Shard, start: int, stop: int) -> Shard:
    """What indices start to stop along the shard's axis hold."""
    pieces = []
    for piece in shard.pieces:
        first, last = max(start, piece.start), min(stop, piece.start + piece.size)
        if first < last:
            pieces.append(Piece(piece.hf_name, piece.hf_start + first - piece.start, first - start, last - first))
    shape = tuple(stop - start if i == shard.axis else n for i, n in enumerate(shard.shape))
    return Shard(shape, shard.axis, shard.split, tuple(pieces))


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
    """The whole HF tensors that one parameter's shards of all tensor ranks hold: the inverse of `fill`.

    What lies in one piece is a view of it.
    """
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
        ordered = [part for _, part in sorted(found, key=lambda item: item[0])]
        yield hf_name, torch.cat(ordered, dim=axis) if len(ordered) > 1 else ordered[0]


def _hf_sizes(pieces: Sequence[Piece]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.hf_name] = sizes.get(piece.hf_name, 0) + piece.size
    return sizes
