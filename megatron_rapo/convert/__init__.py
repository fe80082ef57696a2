"""Convert checkpoints between Hugging Face and Megatron, inspect and compare them, on any machine, without torchrun."""
