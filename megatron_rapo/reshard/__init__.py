"""Move weights from Megatron to vLLM or Hugging Face, and prove that they arrived."""
