"""vLLM inside the trainer's processes. The only package that imports vllm, and only once an engine is built."""

from megatron_rapo.rollout.engine import Engine
from megatron_rapo.rollout.generation import Work
from megatron_rapo.rollout.guest import name_ranges
from megatron_rapo.rollout.requests import Sampling

__all__ = ["Engine", "Sampling", "Work", "name_ranges"]
