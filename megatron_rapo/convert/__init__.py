"""Convert checkpoints between Hugging Face and Megatron, inspect and compare them, on any machine, without torchrun."""

from megatron_rapo.convert.compare import Difference, compare
from megatron_rapo.convert.inspect import Summary, summarise, total_bytes
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.reshard import reshard_megatron, tensor_bytes
from megatron_rapo.convert.source import ModelSource, open_source
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.convert.to_megatron import hf_to_megatron

__all__ = [
    "Difference",
    "Layout",
    "ModelSource",
    "Summary",
    "compare",
    "hf_to_megatron",
    "megatron_to_hf",
    "open_source",
    "reshard_megatron",
    "summarise",
    "tensor_bytes",
    "total_bytes",
]
