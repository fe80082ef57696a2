"""Memory of one process in each state of a step, added up from the parameter map and the settings.

T tokens of a micro-batch that a process has, h hidden size, q and k query and key-value width, f feed-forward width; of
what is split over tensor ranks a rank's part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_rapo.config import Config
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import (
    EMBEDDING,
    OUTPUT,
    TORCH_NORMS,
    engine_shards,
    layers_per_chunk,
    padded_vocab_size,
    stages_of_layers,
    trainer_shards,
)
from megatron_rapo.runtime.devices import itemsize
from megatron_rapo.scoring.output_head import CHUNK_BYTES
from megatron_rapo.scoring.registries import divergence_of

GRADIENT_BYTES = 4  # of a parameter: Megatron's buffers are float32
OPTIMIZER_BYTES = {"float32": 8, "bfloat16": 12}
"""Of a parameter: Adam's two moments and, beside weights in bfloat16, its own in float32."""
STATES = ("rollout", "resharding", "scoring", "training", "saving")


@dataclass(frozen=True)
class Memory:
    """Of the process of a pipeline stage that has most: bytes by part."""

    stage: int
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Layers:
    """Bytes that the layer implementation keeps of a token in each layer for the backward pass."""

    whole: int
    without_core: int  # and with the inputs of the attention core, which is computed again
    core: int
    block_input: int
    after_last: int  # by the final norm and the output layer


def parameters(model: ModelShape, config: Config) -> list[int]:
    """Of a tensor rank on each pipeline stage, padding included."""
    layout = config.parallel
    stages = stages_of_layers(model.num_layers, pipeline=layout.pipeline, virtual_pipeline=layout.virtual_pipeline)
    found = [0] * layout.pipeline
    for name, shard in trainer_shards(model, tensor=layout.tensor, rank=0, norms=TORCH_NORMS).items():
        if name == OUTPUT and model.tied and layout.pipeline == 1:
            continue  # it is the embedding
        layer = name.removeprefix("decoder.layers.").partition(".")[0]
        stage = stages[int(layer)] if layer.isdecimal() else (0 if name == EMBEDDING else layout.pipeline - 1)
        found[stage] += math.prod(shard.shape)
    return found


def states(model: ModelShape, config: Config, *, replicas: int, layers: str) -> dict[str, Memory]:
    """The device memory of each state, of the stage that needs most in it.

    `replicas` is the data- times context-parallel size, `layers` the implementation (torch, transformer_engine).
    """
    of_stages = [_states_of_stage(model, config, replicas, layers, stage) for stage in range(config.parallel.pipeline)]
    return {
        state: max((Memory(stage, of_stage[state]) for stage, of_stage in enumerate(of_stages)), key=lambda m: m.total)
        for state in STATES
    }


def host(model: ModelShape, config: Config, *, replicas: int) -> Memory:
    """In host memory, for as long as the run lasts or a checkpoint is written."""
    numel = parameters(model, config)
    stage = max(range(len(numel)), key=numel.__getitem__)
    weights, optimizer = numel[stage] * itemsize(config), _optimizer(numel[stage], config, replicas)
    parts = {"reference": 0 if config.memory.reference_on_device else _reference(weights, config)}
    parts["optimizer"] = optimizer if config.memory.offload_optimizer else 0
    parts["copy for a checkpoint"] = weights + optimizer if config.checkpoint.async_save else 0
    return Memory(stage, parts)


def _reference(weights: int, config: Config) -> int:
    return weights if divergence_of(config.algorithm.divergence).reference else 0


def _states_of_stage(
    model: ModelShape, config: Config, replicas: int, layers: str, stage: int
) -> dict[str, dict[str, int]]:
    numel, memory = parameters(model, config)[stage], config.memory
    kept = {"weights": numel * itemsize(config)} | _exact_head(model, config, stage) | _fp8_copies(model, config, stage)
    if memory.reference_on_device:
        kept["reference"] = _reference(kept["weights"], config)
    training = {"gradients": numel * GRADIENT_BYTES, "optimizer": _optimizer(numel, config, replicas)}
    engine = {"engine weights": engine_bytes(model, config)}
    cache = {"KV cache": config.rollout.kv_cache_mib * 2**20}
    beside = {} if memory.offload_optimizer else training
    awake = {} if memory.engine_sleep else engine | cache
    bucket = {"bucket": min(config.reshard.bucket_mib * 2**20, engine["engine weights"])}
    logits = _logits(model, config, stage)
    return {
        "rollout": kept | beside | engine | cache,
        "resharding": kept | beside | engine | ({} if memory.engine_sleep else cache) | bucket,
        "scoring": kept | beside | awake | logits | {"activations": _scoring_bytes(model, config)},
        "training": kept
        | training
        | awake
        | logits
        | {"activations": activation_bytes(model, config, stage, layers)}
        | _head_gradient(model, config, stage),
        "saving": kept | training | awake,
    }


def _fp8_copies(model: ModelShape, config: Config, stage: int) -> dict[str, int]:
    """Of the linears' weights, and transposed for the backward pass: Transformer Engine keeps both."""
    if config.precision.fp8 == "none":
        return {}
    layout, precision = config.parallel, config.precision
    stages = stages_of_layers(model.num_layers, pipeline=layout.pipeline, virtual_pipeline=layout.virtual_pipeline)
    in_fp8 = range(precision.bf16_layers_at_start, model.num_layers - precision.bf16_layers_at_end)
    shards = trainer_shards(model, tensor=layout.tensor, rank=0, norms=TORCH_NORMS)
    of_layer = sum(math.prod(s.shape) for name, s in shards.items() if ".layers.0." in name and len(s.shape) == 2)
    return {"FP8 copies of weights": 2 * of_layer * sum(stages[layer] == stage for layer in in_fp8)}


def engine_numel(model: ModelShape, tensor: int) -> int:
    """Parameters of one process of an engine of `tensor` ranks."""
    shards = engine_shards(model, tensor=tensor, rank=0)
    return sum(math.prod(shard.shape) for shard in shards.values())


def engine_bytes(model: ModelShape, config: Config) -> int:
    """Of the parameters of one process of an engine; in FP8 its layers' linears, with a float32 scale for each row."""
    number_bytes, in_fp8 = itemsize(config), config.rollout.fp8

    def of_parameter(name: str, shape: tuple[int, ...]) -> int:
        if in_fp8 and len(shape) == 2 and name.startswith("model.layers."):
            return math.prod(shape) + 4 * shape[0]
        return math.prod(shape) * number_bytes

    shards = engine_shards(model, tensor=config.rollout.tensor, rank=0)
    return sum(of_parameter(name, shard.shape) for name, shard in shards.items())


def _optimizer(numel: int, config: Config, replicas: int) -> int:
    share = replicas if config.optimizer.distributed else 1
    return -(-numel // share) * OPTIMIZER_BYTES[config.precision.dtype]


def tokens_of_rank(config: Config) -> int:
    """T: of a full micro-batch."""
    return -(-config.batch.tokens_per_microbatch // config.parallel.context)


def activation_bytes(model: ModelShape, config: Config, stage: int, layers: str) -> int:
    """What is kept for the backward pass when most micro-batches are under way, and one layer computed again.

    That layer is when what follows the last layer is gone already.
    """
    of_layer = layer_bytes(model, config, layers)
    kept, again = {
        "none": (of_layer.whole, 0),
        "selective": (of_layer.without_core, of_layer.core),
        "full": (of_layer.block_input, of_layer.whole),
    }[config.model.recompute]
    after = of_layer.after_last if stage == config.parallel.pipeline - 1 else 0
    return tokens_of_rank(config) * (layers_under_way(model, config, stage) * kept + max(again, after))


def layers_under_way(model: ModelShape, config: Config, stage: int) -> int:
    """Layers times micro-batches whose activations a stage has at a time, at most (1F1B, interleaved with chunks)."""
    layout = config.parallel
    chunks = layout.virtual_pipeline
    per_chunk = layers_per_chunk(model.num_layers, layout.pipeline * chunks)
    mine = [per_chunk[chunk * layout.pipeline + stage] for chunk in range(chunks)]
    if chunks == 1:
        return mine[0] * (layout.pipeline - stage)
    warmup = 2 * (layout.pipeline - stage - 1) + (chunks - 1) * layout.pipeline + 1
    return -(-warmup * sum(mine) // chunks)


def layer_bytes(model: ModelShape, config: Config, layers: str) -> Layers:
    """By the tensors that autograd keeps in a layer (`tests/preflight/test_memory.py` counts them)."""
    layout, number_bytes = config.parallel, itemsize(config)
    hidden = -(-model.hidden_size // (layout.tensor if layout.sequence else 1)) * number_bytes
    q = model.q_size // layout.tensor * number_bytes
    k = max(1, model.num_kv_heads // layout.tensor) * model.head_dim * number_bytes
    f = model.ffn_hidden_size // layout.tensor * number_bytes
    core = inputs = 2 * q + 2 * k
    gate_up = model.gate_up_size // layout.tensor * number_bytes
    norm = hidden  # keeps its input
    norms = sum(parameter.shape == ("hidden_size",) for parameter in model.family.layer)
    rest = norms * (norm + hidden) + gate_up + f  # a norm's output and the gated MLP's are inputs of linears
    if layers == "torch":
        rest += q  # attention's output, copied for its projection
    return Layers(
        whole=rest + core, without_core=rest + inputs, core=core, block_input=hidden, after_last=norm + hidden
    )


def _scoring_bytes(model: ModelShape, config: Config) -> int:
    """The widest that a layer is while it is computed, and the hidden states."""
    f = model.ffn_hidden_size // config.parallel.tensor
    return tokens_of_rank(config) * (3 * model.hidden_size + 3 * f) * itemsize(config)


def _logits(model: ModelShape, config: Config, stage: int) -> dict[str, int]:
    """Chunks of the logits, of the policy twice and of an exact divergence's reference besides."""
    if stage < config.parallel.pipeline - 1:
        return {}
    rows = padded_vocab_size(model.vocab_size, config.parallel.tensor) // config.parallel.tensor
    chunk = min(CHUNK_BYTES, tokens_of_rank(config) * rows * 4)
    return {"logits": chunk * (3 if divergence_of(config.algorithm.divergence).exact else 2)}


def _head_numel(model: ModelShape, config: Config) -> int:
    tensor = config.parallel.tensor
    return padded_vocab_size(model.vocab_size, tensor) // tensor * model.hidden_size


def _head_gradient(model: ModelShape, config: Config, stage: int) -> dict[str, int]:
    """The output layer's, gathered in float32 over the chunks."""
    return {"output layer's gradient": _head_numel(model, config) * 4} if stage == config.parallel.pipeline - 1 else {}


def _exact_head(model: ModelShape, config: Config, stage: int) -> dict[str, int]:
    """The reference's output layer, on the device for an exact divergence."""
    if stage < config.parallel.pipeline - 1 or not divergence_of(config.algorithm.divergence).exact:
        return {}
    return {"reference's output layer": _head_numel(model, config) * itemsize(config)}
