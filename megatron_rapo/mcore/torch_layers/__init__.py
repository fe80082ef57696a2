"""Layers of plain torch, for machines without Transformer Engine."""
