"""Processes, signals, determinism and atomic files."""
