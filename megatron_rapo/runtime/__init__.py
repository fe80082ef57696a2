"""Processes, signals, determinism and atomic writes."""
