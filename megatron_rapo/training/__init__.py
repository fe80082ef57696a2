"""Train: the step, and what it needs (groups of prompts, weight sync, parity, metrics, export)."""
