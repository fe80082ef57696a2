"""RAPO (arXiv 2510.03865): reinforcement learning of reasoning models with verifiable rewards.

One torchrun program holds a Megatron-Core trainer and a vLLM engine in every process. Importing this
package imports nothing else; start at `megatron_rapo.training.trainer` to read, at `megatron_rapo.cli` to run.
"""

__version__ = "0.1.0"
