"""Hugging Face model folders: what the model is, its weights read slice by slice, and writing a new folder."""

from megatron_rapo.hf.agreement import check_agreement
from megatron_rapo.hf.shape import ModelShape, read_shape
from megatron_rapo.hf.stored import check_weights
from megatron_rapo.hf.weights import WeightReader, save_folder

__all__ = ["ModelShape", "WeightReader", "check_agreement", "check_weights", "read_shape", "save_folder"]
