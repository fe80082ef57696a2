"""Check that settings, model, processes and machine fit together, before anything is built."""

from __future__ import annotations

import math
import shutil
import tempfile

import psutil
import torch

from megatron_rapo.checkpoints.folders import has_checkpoint
from megatron_rapo.config import Config, ConfigError
from megatron_rapo.fp8_recipes import FP8_RECIPES
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import ENGINE_VOCABULARY_MULTIPLE, hf_shapes, padded_vocab_size, unsplittable
from megatron_rapo.preflight.memory import OPTIMIZER_BYTES, kv_token_bytes
from megatron_rapo.runtime.devices import Backend, has_transformer_engine, itemsize
from megatron_rapo.runtime.rank import local_world_size
from megatron_rapo.runtime.run_folder import RunFolder

_TOKEN_ID_BYTES = 4  # in vLLM's table of the sequences that it decodes (InputBatch.token_ids_cpu)


def check_world_size(config: Config, world_size: int) -> None:
    """Refuse layouts and batches that do not divide among `world_size` processes. Raises ConfigError."""
    parallel, batch, rollout = config.parallel, config.batch, config.rollout
    if world_size % parallel.model_size:
        raise ConfigError(
            f"parallel: tensor={parallel.tensor} x pipeline={parallel.pipeline} x context={parallel.context} = "
            f"{parallel.model_size} does not divide the {world_size} processes; "
            f"start a multiple of {parallel.model_size} processes or change the layout."
        )
    _check_engines_fit(config, world_size)
    engines = world_size // rollout.tensor
    for name in ("prompts_per_step", "oversampled_prompts"):
        if getattr(batch, name) % engines:
            raise ConfigError(
                f"batch.{name}={getattr(batch, name)}: not divisible by the {engines} engines "
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


def _check_engines_fit(config: Config, world_size: int) -> None:
    if world_size % config.rollout.tensor:
        raise ConfigError(
            f"rollout.tensor={config.rollout.tensor}: does not divide the {world_size} processes; "
            "set rollout.tensor to a divisor of it."
        )


def check_rollout(config: Config, shape: ModelShape, world_size: int) -> None:
    """Refuse settings with which `world_size` processes cannot run this model's engines. Raises ConfigError."""
    _check_engines_fit(config, world_size)
    rollout = config.rollout
    _check_splits("rollout.tensor", rollout.tensor, shape)
    rows = padded_vocab_size(shape.vocab_size, ENGINE_VOCABULARY_MULTIPLE)
    if rows % rollout.tensor:
        raise ConfigError(
            f"rollout.tensor={rollout.tensor}: does not divide the vocabulary's {rows} rows (padded to a multiple of "
            f"{ENGINE_VOCABULARY_MULTIPLE}, as vLLM does); choose a tensor-parallel size that does."
        )
    if rollout.packed and torch.cuda.is_available():
        raise ConfigError(
            "rollout.packed=true: packs weights on a CPU and does nothing on a GPU; set rollout.packed=false."
        )
    if config.max_sequence_tokens > shape.max_position:
        raise ConfigError(
            f"rollout.max_completion_tokens={rollout.max_completion_tokens}: sequences of up to "
            f"{config.max_sequence_tokens} tokens, but the model has positions for {shape.max_position}; "
            "lower it, evaluation.max_completion_tokens or data.max_prompt_tokens."
        )
    needed_mib = -(-config.max_sequence_tokens * kv_token_bytes(shape, config) // 2**20)
    if rollout.kv_cache_mib < needed_mib:
        raise ConfigError(
            f"rollout.kv_cache_mib={rollout.kv_cache_mib}: one sequence of {config.max_sequence_tokens} tokens needs "
            f"{needed_mib} MiB; set rollout.kv_cache_mib >= {needed_mib}, and many times that for many sequences."
        )


def _check_splits(setting: str, size: int, shape: ModelShape) -> None:
    problem = unsplittable(shape, size)
    if problem:
        raise ConfigError(f"{setting}={size}: {problem}; choose a tensor-parallel size that does.")


def check_model(config: Config, shape: ModelShape) -> None:
    """Refuse settings that do not fit this model. Raises ConfigError."""
    parallel = config.parallel
    _check_splits("parallel.tensor", parallel.tensor, shape)
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if shape.num_layers < chunks:
        raise ConfigError(
            f"parallel.pipeline={parallel.pipeline}, parallel.virtual_pipeline={parallel.virtual_pipeline}: {chunks} "
            f"chunks for the model's {shape.num_layers} layers; choose sizes whose product is at most that."
        )
    precision = config.precision
    for name in ("bf16_layers_at_start", "bf16_layers_at_end"):
        most = shape.num_layers // parallel.pipeline
        if getattr(precision, name) > most:
            raise ConfigError(
                f"precision.{name}={getattr(precision, name)}: a pipeline stage has {most} of the model's "
                f"{shape.num_layers} layers, and Megatron takes no more than that; set at most {most}."
            )


def check_machine(config: Config) -> None:
    """Refuse settings that this machine does not support. Raises ConfigError."""
    _check_layers(config)
    check_engine(config)
    _check_memory(config)


def check_engine(config: Config) -> None:
    """Refuse an engine without kernels or memory on this machine. Raises ConfigError."""
    rollout, processes = config.rollout, local_world_size()
    host_mib = psutil.virtual_memory().total // 2**20
    on_gpu = torch.cuda.is_available()
    if rollout.fp8 and on_gpu:  # without kernels vLLM would silently keep activations in bfloat16; a CPU has kernels
        _check_capability("rollout.fp8=true", "tensorwise", "rollout.fp8=false")
    if on_gpu:
        most_mib, place = torch.cuda.get_device_properties(0).total_memory // 2**20, "the GPU has"
    else:
        most_mib, place = host_mib // processes, f"this machine has for each of its {processes} processes"
    if rollout.kv_cache_mib >= most_mib:
        raise ConfigError(
            f"rollout.kv_cache_mib={rollout.kv_cache_mib}: more than the {most_mib:,} MiB of memory that {place}, and "
            "the model needs some of it; lower it."
        )
    table_mib = rollout.max_concurrent * config.max_sequence_tokens * _TOKEN_ID_BYTES // 2**20
    if table_mib >= host_mib // processes:
        raise ConfigError(
            f"rollout.max_concurrent={rollout.max_concurrent}: vLLM's table of so many sequences of up to "
            f"{config.max_sequence_tokens} tokens takes {table_mib:,} MiB, but this machine has "
            f"{host_mib // processes:,} MiB for each of its {processes} processes; lower it."
        )


def _check_layers(config: Config) -> None:
    layers, precision = Backend.resolve(config).layers, config.precision
    if layers == "transformer_engine" and not has_transformer_engine():
        raise ConfigError(
            "model.layers=transformer_engine: there is no GPU, or Transformer Engine is not installed; "
            "set model.layers=auto or torch."
        )
    if layers == "transformer_engine" and precision.dtype == "float32":
        raise ConfigError(
            "model.layers=transformer_engine: its attention over packed sequences has no float32 kernels; "
            "set precision.dtype=bfloat16 or model.layers=torch."
        )
    if layers == "transformer_engine" and config.batch.share_prompts:
        raise ConfigError(
            "batch.share_prompts=true: Transformer Engine's attention does not support sequences that share a prompt; "
            "set batch.share_prompts=false or model.layers=torch."
        )
    if precision.fp8 == "none":
        return
    if layers != "transformer_engine":
        raise ConfigError(
            f"precision.fp8={precision.fp8}: Megatron would ignore it with model.layers={layers}; use a GPU with "
            "Transformer Engine or set precision.fp8=none."
        )
    _check_capability(
        f"precision.fp8_recipe={precision.fp8_recipe}", precision.fp8_recipe, "another recipe, or precision.fp8=none"
    )


def _check_capability(setting: str, recipe: str, fix: str) -> None:
    least, found = FP8_RECIPES[recipe].capability, torch.cuda.get_device_capability()
    if found < least:
        raise ConfigError(
            f"{setting}: needs a GPU of compute capability {least[0]}.{least[1]}, but this one has "
            f"{found[0]}.{found[1]}; set {fix}."
        )


def _check_memory(config: Config) -> None:
    """Refuse settings that save GPU memory if there is no GPU."""
    for field, value in config.memory:
        if value and not torch.cuda.is_available():
            raise ConfigError(
                f"memory.{field}={str(value).lower()}: is about GPU memory, but there is no GPU; leave it out."
            )


def check_disk(config: Config, shape: ModelShape) -> None:
    """Refuse a run folder whose disk is too small for a checkpoint, the one before it and the export.

    Raises ConfigError, or OSError if the folder cannot be written to.
    """
    folder = config.run.folder
    tempfile.TemporaryFile(dir=folder).close()  # raises OSError if the folder is read-only
    numel = sum(math.prod(size) for size in hf_shapes(shape).values())
    of_weights = numel * itemsize(config)
    checkpoint = of_weights + numel * OPTIMIZER_BYTES[config.precision.dtype]
    export = of_weights if config.checkpoint.hf_export else 0
    several = bool(config.checkpoint.every_steps or config.checkpoint.every_minutes)
    # A new checkpoint is written beside the last one, which is there already if the run resumes.
    missing = 2 if several and not has_checkpoint(RunFolder(folder).checkpoints) else 1
    free = shutil.disk_usage(folder).free
    if free < missing * checkpoint + export:
        what = "a checkpoint of this model takes" if missing == 1 else "two checkpoints of this model take"
        raise ConfigError(
            f"run.folder={folder}: its disk has {free / 1e9:.2f} GB free, but {what} "
            f"{missing * checkpoint / 1e9:.2f} GB, its export as a Hugging Face folder {export / 1e9:.2f}; make room, "
            "or name a folder on another disk."
        )
