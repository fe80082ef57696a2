"""The training step and what surrounds it: prompts, weight sync, parity, metrics, export."""
