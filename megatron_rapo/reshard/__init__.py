"""Moves weights between Hugging Face, Megatron and vLLM, and proves that they arrived."""
