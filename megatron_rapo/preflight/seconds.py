"""Estimate a step's seconds by phase from hardware figures. The result may be wrong by a factor of two or so."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rapo.config import Config
from megatron_rapo.models import ModelShape
from megatron_rapo.models.parameter_map import TORCH_NORMS
from megatron_rapo.preflight.batch import Batch
from megatron_rapo.preflight.memory import GRADIENT_BYTES, engine_bytes, engine_numel, kv_token_bytes, parameters
from megatron_rapo.reshard.plan import Layouts, plan
from megatron_rapo.runtime.devices import itemsize
from megatron_rapo.scoring.objective_registry import divergence_of


@dataclass(frozen=True)
class Hardware:
    """One GPU: the vendor's figures, and the shares of them that the estimate assumes."""

    name: str
    bf16_flops: float  # dense, per second
    memory_bytes_per_s: float
    link_bytes_per_s: float  # to the other GPUs of its node, one direction
    network_bytes_per_s: float  # to other nodes, one direction
    utilisation: float = 0.4  # of the FLOPs, in training and scoring
    bandwidth: float = 0.6  # of memory and links


HARDWARE = {
    "a100": Hardware("A100 80GB", 312e12, 2.04e12, 300e9, 25e9),
    "h100": Hardware("H100 SXM", 989e12, 3.35e12, 450e9, 50e9),
    "h200": Hardware("H200 SXM", 989e12, 4.8e12, 450e9, 50e9),
}
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process moves in a step."""

    copied: int  # in resharding, within the device
    sent: int  # in resharding, to others
    gradients: int  # summed over data-parallel ranks
    tensor_parallel: int  # activations between tensor ranks


def traffic(model: ModelShape, config: Config, batch: Batch, *, world: int) -> Traffic:
    """Return the traffic of the first process."""
    layout, number_bytes, layouts = config.parallel, itemsize(config), Layouts.of(config, world)
    bucket_bytes = config.reshard.bucket_mib * 2**20
    rounds = plan(model, TORCH_NORMS, layouts, rank=0, itemsize=number_bytes, bucket_bytes=bucket_bytes)
    replicas, tensor, numel = layouts.replicas, layout.tensor, parameters(model, config)[0]
    sums = 2 * (_passes(config) + 1) + 2  # of hidden states in a layer: twice per forward pass and twice backward
    of_rank = batch.tokens / (world // layout.model_size) / layout.context / layout.pipeline
    return Traffic(
        copied=sum(move.numel for each in rounds for move in each.copies) * number_bytes,
        sent=sum(move.numel for each in rounds for moves in each.sends.values() for move in moves) * number_bytes,
        gradients=round(2 * (replicas - 1) / replicas * numel * GRADIENT_BYTES * batch.optimizer_steps),
        tensor_parallel=round(
            sums * 2 * (tensor - 1) / tensor * of_rank * model.hidden_size * number_bytes * model.num_layers
        ),
    )


def seconds(
    model: ModelShape, config: Config, batch: Batch, moved: Traffic, hardware: Hardware, *, world: int
) -> dict[str, float]:
    """Return the seconds of each phase."""
    numel = engine_numel(model, 1)
    flops = hardware.bf16_flops * hardware.utilisation * world
    links = hardware.link_bytes_per_s * hardware.bandwidth
    across = (hardware.network_bytes_per_s if world > GPUS_PER_NODE else hardware.link_bytes_per_s) * hardware.bandwidth
    share = _passes(config) / (_passes(config) + 2)  # scoring's share of the tensor-parallel traffic
    recomputed = 8 if config.model.recompute == "full" else 6
    training = recomputed * numel * batch.tokens / flops + moved.tensor_parallel * (1 - share) / links
    return {
        "reshard": moved.copied * 2 / (hardware.memory_bytes_per_s * hardware.bandwidth) + moved.sent / across,
        "rollout": _rollout(model, config, batch, hardware),
        "score": 2 * numel * batch.tokens * _passes(config) / flops + moved.tensor_parallel * share / links,
        "train": training / (1 - batch.bubble) + moved.gradients / across,
    }


def _passes(config: Config) -> int:
    """Return the number of scoring passes: one for the policy, one for the reference if the divergence has one."""
    return 2 if divergence_of(config.algorithm.divergence).reference else 1


def _rollout(model: ModelShape, config: Config, batch: Batch, hardware: Hardware) -> float:
    """Return the seconds of decoding. Each step reads the weights and all sequences' keys and values once."""
    of_token = kv_token_bytes(model, config)
    fit = config.rollout.kv_cache_mib * 2**20 / of_token / batch.tokens_per_sequence
    together = max(1.0, min(batch.completions_per_engine, config.rollout.max_concurrent, fit))
    read = engine_bytes(model, config) + together * batch.tokens_per_sequence / 2 * of_token
    a_token = max(
        read / (hardware.memory_bytes_per_s * hardware.bandwidth),
        2 * engine_numel(model, config.rollout.tensor) * together / (hardware.bf16_flops * hardware.utilisation),
    )
    return a_token * batch.tokens_per_sequence * batch.completions_per_engine / together
