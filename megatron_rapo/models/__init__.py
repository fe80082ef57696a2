"""Read Hugging Face model folders (the model's shape, slices of its weights) and write new ones."""

from megatron_rapo.models.hf_weights import WeightReader, save_folder
from megatron_rapo.models.shape import ModelShape, read_shape
from megatron_rapo.models.stored_weights import check_weights
from megatron_rapo.models.transformers_agreement import check_agreement

__all__ = ["ModelShape", "WeightReader", "check_agreement", "check_weights", "read_shape", "save_folder"]
