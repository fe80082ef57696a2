"""Map every Hugging Face tensor to its place in Megatron and in vLLM.

The HF import, the HF export and the resharding use this one parameter map. It imports neither megatron nor vllm, so it
can be tested without them. Both sides fuse the same tensors into one parameter (q, k and v; gate and up), each in its
own order. So one entry has a parameter's name on both sides, and how a tensor-parallel rank holds it on each side. The
family says which parameters a layer has (models/families.py).

A shard is a sequence of pieces along one axis. Each piece is a range of rows (or columns) of one HF tensor:

- Column-parallel weights are split over rows, row-parallel weights over columns.
- Megatron interleaves linear_qkv by query group, [q of group 0, k 0, v 0, q of group 1, ...], and splits it evenly. If
  there are more ranks than groups, it splits groups. vLLM's qkv_proj is [q, k, v]. If there are more ranks than KV
  heads, neighbouring ranks hold the same head.
- linear_fc1 and gate_up_proj have a rank's gate rows above its up rows.
- The vocabulary is padded with rows that no piece covers: to a multiple of the tensor size in Megatron, of 64 in vLLM.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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
    axis: int  # of the pieces, and of tensor parallelism if `split`
    split: bool  # over tensor ranks; if False, each rank holds the same
    pieces: tuple[Piece, ...]


NormNames = Mapping[str, str]
"""A layer's norms: names in models/families.py -> Megatron's names, if they differ."""
TORCH_NORMS: NormNames = {}
TRANSFORMER_ENGINE_NORMS: NormNames = {  # it fuses each norm into the linear layer after it
    ATTENTION_NORM.trainer: "self_attention.linear_qkv.layer_norm_weight",
    MLP_NORM.trainer: "mlp.linear_fc1.layer_norm_weight",
}

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
ENGINE_VOCABULARY_MULTIPLE = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE


def padded_vocab_size(vocab_size: int, multiple: int) -> int:
    """Return the number of rows of an embedding padded to the next multiple."""
    return -(-vocab_size // multiple) * multiple


def layers_per_chunk(num_layers: int, chunks: int) -> list[int]:
    """Return the number of layers of each of the `chunks` (pipeline x virtual pipeline) model chunks, in order.

    The numbers are as equal as possible. Remaining layers go to the middle chunks first, then to the first chunk (it
    has the embedding), and then to the last one (it has the output layer and the loss).
    """
    even, left = divmod(num_layers, chunks)
    by_need = [*range(1, chunks - 1), 0, chunks - 1][:chunks]
    return [even + (chunk in by_need[:left]) for chunk in range(chunks)]


def stages_of_layers(num_layers: int, *, pipeline: int, virtual_pipeline: int) -> list[int]:
    """Return the pipeline rank that holds each layer. Ranks take chunks in turn (Megatron's interleaved schedule)."""
    counts = layers_per_chunk(num_layers, pipeline * virtual_pipeline)
    return [chunk % pipeline for chunk, count in enumerate(counts) for _ in range(count)]


# The next classes say how a tensor-parallel rank holds a parameter, in the trainer and in the engine.


@dataclass(frozen=True)
class Whole:
    """A parameter that every rank holds whole: a norm."""

    hf_name: str
    size: int

    def trainer(self, _tensor: int, _rank: int) -> Shard:
        return Shard((self.size,), 0, False, (Piece(self.hf_name, 0, 0, self.size),))

    engine = trainer


@dataclass(frozen=True)
class Columns:
    """A parameter that is split over its columns: a row-parallel linear layer."""

    hf_name: str
    rows: int
    columns: int

    def trainer(self, tensor: int, rank: int) -> Shard:
        size = self.columns // tensor
        return Shard((self.rows, size), 1, True, (Piece(self.hf_name, rank * size, 0, size),))

    engine = trainer


@dataclass(frozen=True)
class Stacked:
    """Tensors with equally many rows, each split over its rows: gate and up. A rank stacks its parts."""

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

    hf_pattern: str  # {} stands for q, k or v
    trailing: tuple[int, ...]  # (columns,) for a weight, () for a bias
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def trainer(self, tensor: int, rank: int) -> Shard:
        """Split the interleaved rows evenly: into whole groups, or parts of a group if there are fewer than ranks."""
        d, queries = self.head_dim, self.num_heads // self.num_kv_heads * self.head_dim
        sizes = (("q", queries), ("k", d), ("v", d))
        unsplit = self._shard([(part, group * n, n) for group in range(self.num_kv_heads) for part, n in sizes])
        size = unsplit.shape[0] // tensor
        return narrowed(unsplit, rank * size, (rank + 1) * size)

    def engine(self, tensor: int, rank: int) -> Shard:
        queries = self.num_heads // tensor * self.head_dim
        heads, copies = max(1, self.num_kv_heads // tensor), max(1, tensor // self.num_kv_heads)
        keys = heads * self.head_dim
        first = rank // copies * keys
        return self._shard([("q", rank * queries, queries), ("k", first, keys), ("v", first, keys)])

    def _shard(self, rows: Sequence[tuple[str, int, int]]) -> Shard:
        """Stack rows. Each entry is (part, first row in its HF tensor, number of rows)."""
        pieces, start = [], 0
        for part, hf_start, size in rows:
            pieces.append(Piece(self.hf_pattern.format(part), hf_start, start, size))
            start += size
        return Shard((start, *self.trailing), 0, True, tuple(pieces))


@dataclass(frozen=True)
class Vocabulary:
    """A parameter with a row for every token, and padding: the embedding or the output layer."""

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
    """One parameter: its name on both sides, and how ranks hold it. Layers are numbered over all pipeline stages."""

    trainer: str
    engine: str
    holding: Holding
    layer: int | None = None  # None: before the first layer (EMBEDDING) or after the last

    @property
    def name_in_layer(self) -> str:
        """Return the engine's name without the prefix of its layer, if it is in a layer."""
        return self.engine.removeprefix(f"model.layers.{self.layer}.")


def entries(model: ModelShape, norms: NormNames) -> list[Entry]:
    """List every parameter of the model, from the embedding to the output layer.

    A tied output layer is listed too, with the embedding's HF tensor: Megatron's last pipeline stage keeps a copy of
    it, vLLM does not.
    """
    hidden, embedding = model.hidden_size, "model.embed_tokens.weight"
    head = embedding if model.tied else "lm_head.weight"
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
    """Return why `tensor` ranks cannot split the model (by Megatron's and vLLM's rules), or None if they can."""
    for field in ("num_heads", "ffn_hidden_size"):
        if getattr(model, field) % tensor:
            return f"does not divide the model's {field}={getattr(model, field)}"
    if model.num_kv_heads % tensor and tensor % model.num_kv_heads:
        return f"neither divides the model's num_kv_heads={model.num_kv_heads} nor is a multiple of it"
    return None


def trainer_shards(model: ModelShape, *, tensor: int, rank: int, norms: NormNames) -> dict[str, Shard]:
    """Return rank `rank`'s part (of `tensor` ranks) of every parameter of the whole model, by Megatron's names.

    Raises ValueError if `tensor` ranks cannot split this model.
    """
    if problem := unsplittable(model, tensor):
        raise ValueError(f"parallel.tensor={tensor}: {problem}; choose a tensor-parallel size that does.")
    return {entry.trainer: entry.holding.trainer(tensor, rank) for entry in entries(model, norms)}


def engine_shards(model: ModelShape, *, tensor: int, rank: int) -> dict[str, Shard]:
    """Return rank `rank`'s part (of `tensor` ranks) of every parameter of the whole model, by vLLM's names."""
    return {entry.engine: entry.holding.engine(tensor, rank) for entry in entries(model, TORCH_NORMS)}


def hf_shapes(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every HF tensor of the model, in the map's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in trainer_shards(model, tensor=1, rank=0, norms=TORCH_NORMS).values():
        sizes: Counter[str] = Counter()
        for piece in shard.pieces:
            sizes[piece.hf_name] += piece.size
        for hf_name, size in sizes.items():
            shapes[hf_name] = tuple(size if i == shard.axis else n for i, n in enumerate(shard.shape))
    return shapes


def narrowed(shard: Shard, start: int, stop: int) -> Shard:
    """Return the part of a shard from index `start` to `stop` along its axis."""
    pieces = []
    for piece in shard.pieces:
        first, last = max(start, piece.start), min(stop, piece.start + piece.size)
        if first < last:
            pieces.append(Piece(piece.hf_name, piece.hf_start + first - piece.start, first - start, last - first))
    shape = tuple(stop - start if i == shard.axis else n for i, n in enumerate(shard.shape))
    return Shard(shape, shard.axis, shard.split, tuple(pieces))


def fill(local: Tensor, shard: Shard, read: Callable[[str, int, int, int], Tensor]) -> None:
    """Copy the shard's pieces into `local`, in place. Set padding to 0.

    `read(hf_name, axis, start, stop)` returns slices. Raises ValueError for one whose shape does not fit config.json.
    """
    if sum(piece.size for piece in shard.pieces) < shard.shape[shard.axis]:
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
    """Yield whole HF tensors from the shards of one parameter on all tensor ranks: the inverse of `fill`.

    A tensor that is in one piece is a view.
    """
    axis, pairs = shards_by_rank[0].axis, list(zip(locals_by_rank, shards_by_rank, strict=True))
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for local, shard in pairs if shards_by_rank[0].split else pairs[:1]:
        for piece in shard.pieces:
            parts[piece.hf_name][piece.hf_start] = local.narrow(axis, piece.start, piece.size)
    for hf_name, found in parts.items():
        ordered = [found[start] for start in sorted(found)]
        yield hf_name, torch.cat(ordered, dim=axis) if len(ordered) > 1 else ordered[0]
