"""Compute a process' memory in each state of a step, from the parameter map and the settings.

q and k are the widths of query and of key or value, f is the feed-forward width, each as one tensor rank has it.
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
from megatron_rapo.scoring.objective_registry import divergence_of
from megatron_rapo.scoring.output_head import CHUNK_BYTES

GRADIENT_BYTES = 4  # per parameter: Megatron's buffers are float32
OPTIMIZER_BYTES = {"float32": 8, "bfloat16": 12}
"""Per parameter: Adam's two moments and, if the weights are bfloat16, a float32 copy of them."""
STATES = ("rollout", "resharding", "scoring", "training", "saving")


@dataclass(frozen=True)
class Memory:
    """Bytes by part, on the pipeline stage that needs most."""

    stage: int
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Layers:
    """Bytes per token that a layer keeps for the backward pass."""

    whole: int
    core: int  # of these, by the attention core; its inputs take as many
    block_input: int
    after_last: int  # kept by the final norm and the output layer


def _stages(model: ModelShape, config: Config) -> list[int]:
    """Return the pipeline stage of each layer."""
    layout = config.parallel
    return stages_of_layers(model.num_layers, pipeline=layout.pipeline, virtual_pipeline=layout.virtual_pipeline)


def parameters(model: ModelShape, config: Config) -> list[int]:
    """Return how many parameters a tensor rank has on each pipeline stage, padding included."""
    layout, stages = config.parallel, _stages(model, config)
    found = [0] * layout.pipeline
    for name, shard in trainer_shards(model, tensor=layout.tensor, rank=0, norms=TORCH_NORMS).items():
        if name == OUTPUT and model.tied and layout.pipeline == 1:
            continue  # the output layer is the embedding
        layer = name.removeprefix("decoder.layers.").partition(".")[0]
        stage = stages[int(layer)] if layer.isdecimal() else (0 if name == EMBEDDING else layout.pipeline - 1)
        found[stage] += math.prod(shard.shape)
    return found


def states(model: ModelShape, config: Config, *, replicas: int, layers: str) -> dict[str, Memory]:
    """Return the device memory of each state, on the stage that needs most.

    `replicas` is the data- times context-parallel size. `layers` is "torch" or "transformer_engine".
    """
    of_stages = [_states_of_stage(model, config, replicas, layers, stage) for stage in range(config.parallel.pipeline)]
    return {
        state: max((Memory(stage, of_stage[state]) for stage, of_stage in enumerate(of_stages)), key=lambda m: m.total)
        for state in STATES
    }


def host(model: ModelShape, config: Config, *, replicas: int) -> Memory:
    """Return the host memory that a run holds, permanently or while it writes a checkpoint."""
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
    exact_head, logits, head_gradient = _of_last_stage(model, config, stage)
    kept = {"weights": numel * itemsize(config)} | exact_head | _fp8_copies(model, config, stage)
    if memory.reference_on_device:
        kept["reference"] = _reference(kept["weights"], config)
    training = {"gradients": numel * GRADIENT_BYTES, "optimizer": _optimizer(numel, config, replicas)}
    engine = {"engine weights": engine_bytes(model, config)}
    cache = {"KV cache": config.rollout.kv_cache_mib * 2**20}
    beside = {} if memory.offload_optimizer else training
    awake = {} if memory.engine_sleep else engine | cache
    bucket = {"bucket": min(config.reshard.bucket_mib * 2**20, engine["engine weights"])}
    activations = {"activations": activation_bytes(model, config, stage, layers)}
    return {
        "rollout": kept | beside | engine | cache,
        "resharding": kept | beside | engine | ({} if memory.engine_sleep else cache) | bucket,
        "scoring": kept | beside | awake | logits | {"activations": _scoring_bytes(model, config)},
        "training": kept | training | awake | logits | activations | head_gradient,
        "saving": kept | training | awake,
    }


def _fp8_copies(model: ModelShape, config: Config, stage: int) -> dict[str, int]:
    """Return the bytes of FP8 weights. Transformer Engine keeps two copies, one transposed for the backward pass."""
    if config.precision.fp8 == "none":
        return {}
    precision, stages = config.precision, _stages(model, config)
    in_fp8 = range(precision.bf16_layers_at_start, model.num_layers - precision.bf16_layers_at_end)
    shards = trainer_shards(model, tensor=config.parallel.tensor, rank=0, norms=TORCH_NORMS)
    of_layer = sum(math.prod(s.shape) for name, s in shards.items() if ".layers.0." in name and len(s.shape) == 2)
    return {"FP8 copies of weights": 2 * of_layer * sum(stages[layer] == stage for layer in in_fp8)}


def engine_numel(model: ModelShape, tensor: int) -> int:
    """Return how many parameters one process of an engine of `tensor` ranks has."""
    shards = engine_shards(model, tensor=tensor, rank=0)
    return sum(math.prod(shard.shape) for shard in shards.values())


def engine_bytes(model: ModelShape, config: Config) -> int:
    """Return the bytes of an engine's parameters on one process. Linears in FP8 have a float32 scale for each row."""
    number_bytes, in_fp8 = itemsize(config), config.rollout.fp8

    def of_parameter(name: str, shape: tuple[int, ...]) -> int:
        if in_fp8 and len(shape) == 2 and name.startswith("model.layers."):
            return math.prod(shape) + 4 * shape[0]
        return math.prod(shape) * number_bytes

    shards = engine_shards(model, tensor=config.rollout.tensor, rank=0)
    return sum(of_parameter(name, shard.shape) for name, shard in shards.items())


def kv_token_bytes(model: ModelShape, config: Config) -> int:
    """Return the bytes of a token's keys and values in the KV cache of one process of an engine."""
    heads = max(1, model.num_kv_heads // config.rollout.tensor)
    return 2 * model.num_layers * heads * model.head_dim * itemsize(config)


def _optimizer(numel: int, config: Config, replicas: int) -> int:
    share = replicas if config.optimizer.distributed else 1
    return -(-numel // share) * OPTIMIZER_BYTES[config.precision.dtype]


def tokens_of_rank(config: Config) -> int:
    """Return the tokens of a full micro-batch on one process."""
    return -(-config.batch.tokens_per_microbatch // config.parallel.context)


def activation_bytes(model: ModelShape, config: Config, stage: int, layers: str) -> int:
    """Return the bytes kept for the backward pass at their maximum, plus those of one recomputed layer.

    The activations after the last layer are freed before a layer is recomputed, so only the larger of the two counts.
    """
    of_layer = layer_bytes(model, config, layers)
    kept, again = {
        "none": (of_layer.whole, 0),
        "selective": (of_layer.whole, of_layer.core),  # keeps the core's inputs instead
        "full": (of_layer.block_input, of_layer.whole),
    }[config.model.recompute]
    after = of_layer.after_last if stage == config.parallel.pipeline - 1 else 0
    return tokens_of_rank(config) * (layers_under_way(model, config, stage) * kept + max(again, after))


def layers_under_way(model: ModelShape, config: Config, stage: int) -> int:
    """Return the most layers, counted per micro-batch, whose activations a stage holds at once (1F1B, interleaved)."""
    layout = config.parallel
    chunks = layout.virtual_pipeline
    per_chunk = layers_per_chunk(model.num_layers, layout.pipeline * chunks)
    mine = [per_chunk[chunk * layout.pipeline + stage] for chunk in range(chunks)]
    if chunks == 1:
        return mine[0] * (layout.pipeline - stage)
    warmup = 2 * (layout.pipeline - stage - 1) + (chunks - 1) * layout.pipeline + 1
    return -(-warmup * sum(mine) // chunks)


def layer_bytes(model: ModelShape, config: Config, layers: str) -> Layers:
    """Count the tensors that autograd keeps in a layer (`tests/preflight/test_memory.py` checks them)."""
    layout, number_bytes = config.parallel, itemsize(config)
    hidden = -(-model.hidden_size // (layout.tensor if layout.sequence else 1)) * number_bytes
    q = model.q_size // layout.tensor * number_bytes
    k = max(1, model.num_kv_heads // layout.tensor) * model.head_dim * number_bytes
    f = model.ffn_hidden_size // layout.tensor * number_bytes
    core = 2 * q + 2 * k
    gate_up = model.gate_up_size // layout.tensor * number_bytes
    norms = sum(parameter.shape == ("hidden_size",) for parameter in model.family.layer)
    rest = norms * 2 * hidden + gate_up + f  # norms keep their inputs, linears the outputs of norms and gated MLP
    if layers == "torch":
        rest += q  # a copy of attention's output for its projection
    return Layers(whole=rest + core, core=core, block_input=hidden, after_last=2 * hidden)


def _scoring_bytes(model: ModelShape, config: Config) -> int:
    """Return the bytes of a layer's activations at their maximum, and of the hidden states."""
    f = model.ffn_hidden_size // config.parallel.tensor
    return tokens_of_rank(config) * (3 * model.hidden_size + 3 * f) * itemsize(config)


def _of_last_stage(
    model: ModelShape, config: Config, stage: int
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return what only the last stage has: an exact divergence's reference head, chunks of logits, head gradient."""
    if stage < config.parallel.pipeline - 1:
        return {}, {}, {}
    exact, tensor = divergence_of(config.algorithm.divergence).exact, config.parallel.tensor
    rows = padded_vocab_size(model.vocab_size, tensor) // tensor
    numel, chunk_bytes = rows * model.hidden_size, min(CHUNK_BYTES, tokens_of_rank(config) * rows * 4)
    return (
        {"reference's output layer": numel * itemsize(config)} if exact else {},
        {"logits": chunk_bytes * (3 if exact else 2)},  # twice the policy's, once the reference's
        {"output layer's gradient": numel * 4},  # summed in float32 over the chunks
    )
