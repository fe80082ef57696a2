"""vLLM inside the trainer's processes. The only package that imports vllm, and only once an engine is built."""

from megatron_rapo.rollout.engine import Engine, Sampling

__all__ = ["Engine", "Sampling"]
