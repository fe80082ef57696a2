"""Run vLLM inside the trainer's processes. Only this package imports vllm, and only when an engine is built."""

from megatron_rapo.rollout.engine import Engine
from megatron_rapo.rollout.generation import Work
from megatron_rapo.rollout.requests import Sampling
from megatron_rapo.rollout.vllm_patches import name_ranges

__all__ = ["Engine", "Sampling", "Work", "name_ranges"]
