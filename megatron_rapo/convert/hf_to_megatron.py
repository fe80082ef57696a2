"""A Hugging Face folder made into a Megatron checkpoint, rank's file by rank's file, each tensor by itself."""
