"""Where every parameter lives, and moving weights between Hugging Face, Megatron and vLLM."""
