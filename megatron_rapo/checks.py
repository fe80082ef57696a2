"""What settings, model, processes and machine must agree on; refused before anything is built."""

from __future__ import annotations

import importlib.util

import torch

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.hf import ModelShape


def resolve_layers(setting: str) -> str:
    """`auto` of model.layers resolved to torch or transformer_engine."""
    if setting != "auto":
        return setting
    has_te = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
    return "transformer_engine" if has_te else "torch"


def check_world_size(config: Config, world_size: int) -> None:
    """Refuse layouts and batches that `world_size` processes cannot share out. Raises ConfigError."""
    parallel, batch, rollout = config.parallel, config.batch, config.rollout
    if world_size % parallel.model_size:
        raise ConfigError(
            f"parallel: tensor={parallel.tensor} x pipeline={parallel.pipeline} x context={parallel.context} = "
            f"{parallel.model_size} does not divide the {world_size} processes; "
            f"start a multiple of {parallel.model_size} processes or change the layout."
        )
    if world_size % rollout.tensor:
        raise ConfigError(
            f"rollout.tensor={rollout.tensor}: does not divide the {world_size} processes; "
            "set rollout.tensor to a divisor of it."
        )
    engines = world_size // rollout.tensor
    if batch.prompts_per_step % engines:
        raise ConfigError(
            f"batch.prompts_per_step={batch.prompts_per_step}: not divisible by the {engines} engines "
            f"({world_size} processes / rollout.tensor={rollout.tensor}); set a multiple of {engines}."
        )
    data_parallel = world_size // parallel.model_size
    if batch.completions_per_optimizer_step < data_parallel:
        raise ConfigError(
            f"batch.prompts_per_step={batch.prompts_per_step}: {batch.completions_per_optimizer_step} completions per "
            f"optimizer step cannot feed {data_parallel} data-parallel ranks; raise it or the model-parallel sizes."
        )
    if config.optimizer.distributed and data_parallel * parallel.context == 1:
        raise ConfigError(
            "optimizer.distributed=true: shards over data-parallel ranks, and this layout has one; "
            "set optimizer.distributed=false."
        )


def check_model(config: Config, shape: ModelShape) -> None:
    """Refuse settings that this model cannot be trained with, before anything is built. Raises ConfigError."""
    parallel = config.parallel
    for name, tensor, fields in (
        ("parallel.tensor", parallel.tensor, ("num_heads", "num_kv_heads", "ffn_hidden_size")),
        ("rollout.tensor", config.rollout.tensor, ("num_heads", "ffn_hidden_size")),
    ):
        for field in fields:
            if getattr(shape, field) % tensor:
                raise ConfigError(
                    f"{name}={tensor}: does not divide the model's {field}={getattr(shape, field)}; "
                    "choose a tensor-parallel size that does."
                )
    engine, kv_heads = config.rollout.tensor, shape.num_kv_heads
    if kv_heads % engine and engine % kv_heads:  # vLLM splits KV heads over ranks, or copies them
        raise ConfigError(
            f"rollout.tensor={engine}: neither divides the model's num_kv_heads={kv_heads} nor is a multiple of it; "
            "choose a tensor-parallel size that does."
        )
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if shape.num_layers % chunks:
        raise ConfigError(
            f"parallel.pipeline={parallel.pipeline}, parallel.virtual_pipeline={parallel.virtual_pipeline}: {chunks} "
            f"chunks do not divide the model's {shape.num_layers} layers; choose sizes whose product does."
        )
    if config.max_sequence_tokens > shape.max_position:
        raise ConfigError(
            f"rollout.max_completion_tokens={config.rollout.max_completion_tokens}: sequences of up to "
            f"{config.max_sequence_tokens} tokens, but the model has positions for {shape.max_position}; "
            "lower it, evaluation.max_completion_tokens or data.max_prompt_tokens."
        )
    layers = resolve_layers(config.model.layers)
    if config.precision.fp8 != "none" and layers != "transformer_engine":
        raise ConfigError(
            f"precision.fp8={config.precision.fp8}: does nothing with model.layers={layers}; "
            "use a GPU with Transformer Engine or set precision.fp8=none."
        )
