"""Check whether a configuration fits into a GPU, find changes that make it fit, and suggest layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from megatron_rapo.config import Config, ConfigError
from megatron_rapo.models import ModelShape
from megatron_rapo.preflight import memory
from megatron_rapo.preflight.batch import Batch, batch
from megatron_rapo.preflight.checks import check_model, check_rollout, check_world_size
from megatron_rapo.preflight.memory import Memory
from megatron_rapo.preflight.seconds import GPUS_PER_NODE, Hardware, Traffic, seconds, traffic

BEST = 3  # number of suggested layouts
SPARE = 0.1
"""Share of a GPU's memory that a suggested layout leaves free for what is not counted or not measured."""
Settings = Mapping[str, Any]  # "section.field" -> value


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPUs that a run starts on."""

    gpus: int
    memory_bytes: float  # of each GPU
    overhead_bytes: float  # of each GPU, taken by CUDA, NCCL, workspaces and fragmentation
    hardware: Hardware
    layers: str

    @property
    def usable(self) -> float:
        return self.memory_bytes - self.overhead_bytes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory, traffic and time of a step."""

    config: Config
    states: Mapping[str, Memory]
    host: Memory
    batch: Batch
    traffic: Traffic
    seconds: Mapping[str, float]


def needed(model: ModelShape, config: Config, machine: Machine) -> dict[str, Memory]:
    """Return device memory by state. Raises ConfigError if the configuration cannot run on so many processes."""
    check_world_size(config, machine.gpus)
    check_model(config, model)
    check_rollout(config, model, machine.gpus)
    return memory.states(model, config, replicas=_replicas(config, machine), layers=machine.layers)


def estimate(model: ModelShape, config: Config, machine: Machine, tokens_per_sequence: float) -> Estimate:
    """Compute the whole estimate of a configuration. Raises ConfigError as `needed` does."""
    states = needed(model, config, machine)
    sizes = batch(config, world=machine.gpus, tokens_per_sequence=tokens_per_sequence)
    moved = traffic(model, config, sizes, world=machine.gpus)
    return Estimate(
        config=config,
        states=states,
        host=memory.host(model, config, replicas=_replicas(config, machine)),
        batch=sizes,
        traffic=moved,
        seconds=seconds(model, config, sizes, moved, machine.hardware, world=machine.gpus),
    )


def remedies(model: ModelShape, config: Config, machine: Machine) -> list[Settings]:
    """Return single changes that make it fit. If there is none, return the first pair of changes that does."""
    changes = list(_changes(config))
    for together in (1, 2):
        found: list[Settings] = []
        for chosen in itertools.combinations(changes, together):
            settings = {name: value for change in chosen for name, value in change.items()}
            if _fitting(model, config, settings, machine):
                found.append(settings)
        if found:
            return found if together == 1 else found[:1]
    return []


def suggestions(model: ModelShape, config: Config, machine: Machine, tokens_per_sequence: float) -> list[Estimate]:
    """Return the layouts with the shortest estimated steps of those that fit and leave SPARE of the memory free."""
    machine = replace(machine, memory_bytes=machine.memory_bytes * (1 - SPARE))
    fitting = (_fitting(model, config, settings, machine) for settings in _layouts(machine.gpus))
    found = [estimate(model, other, machine, tokens_per_sequence) for other in fitting if other]
    return sorted(found, key=lambda each: sum(each.seconds.values()))[:BEST]


def fits(states: Mapping[str, Memory], machine: Machine) -> bool:
    """Return whether every state fits into a GPU."""
    return max(state.total for state in states.values()) <= machine.usable


def changed(config: Config, settings: Settings) -> Config:
    """Return the configuration with other settings, validated. Raises ValidationError."""
    content = config.model_dump(exclude_unset=True)
    for name, value in settings.items():
        section, field = name.split(".")
        content.setdefault(section, {})[field] = value
    return Config.model_validate(content)


def _fitting(model: ModelShape, config: Config, settings: Settings, machine: Machine) -> Config | None:
    """Return the configuration with other settings if it can run and fits, else None."""
    try:
        other = changed(config, settings)
        return other if fits(needed(model, other, machine), machine) else None
    except (ConfigError, ValidationError):
        return None


def _replicas(config: Config, machine: Machine) -> int:
    """Return data- times context-parallel size."""
    return machine.gpus // (config.parallel.tensor * config.parallel.pipeline)


def _changes(config: Config) -> Iterator[Settings]:
    """Yield changes, the least invasive first."""
    if config.memory.reference_on_device:
        yield {"memory.reference_on_device": False}
    if not config.optimizer.distributed:
        yield {"optimizer.distributed": True}
    if not config.memory.engine_sleep:
        yield {"memory.engine_sleep": True}
    if not config.memory.offload_optimizer:
        yield {"memory.offload_optimizer": True}
    if config.model.recompute != "full":
        yield {"model.recompute": "full"}
    for share in (2, 4):
        yield {"rollout.kv_cache_mib": config.rollout.kv_cache_mib // share}
    longest = config.data.max_prompt_tokens + config.rollout.max_completion_tokens
    if config.batch.tokens_per_microbatch > longest:
        yield {"batch.tokens_per_microbatch": max(longest, config.batch.tokens_per_microbatch // 2)}
    for factor in (2, 4):
        yield {"parallel.tensor": config.parallel.tensor * factor}
    yield {"parallel.pipeline": config.parallel.pipeline * 2}


def _layouts(gpus: int) -> Iterator[Settings]:
    within_node = [size for size in (1, 2, 4, 8) if size <= min(gpus, GPUS_PER_NODE)]
    for tensor, engine, pipeline, recompute in itertools.product(within_node, within_node, (1, 2, 4), ("none", "full")):
        if gpus % (tensor * pipeline) == 0 and gpus % engine == 0:
            yield {
                "parallel.tensor": tensor,
                "parallel.sequence": tensor > 1,
                "parallel.pipeline": pipeline,
                "parallel.virtual_pipeline": 1,
                "parallel.context": 1,
                "rollout.tensor": engine,
                "model.recompute": recompute,
                "optimizer.distributed": gpus > tensor * pipeline,
            }
