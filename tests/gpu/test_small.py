"""The benchmarks for a GPU at a tiny size on a CPU, where their figures mean nothing but must be there."""

from __future__ import annotations

from typing import Any


def test_training(small: dict[str, Any]) -> None:
    [case] = small["training"]
    assert case["precision"] == "torch" and "failed" not in case
    assert case["tokens_per_s"] > 0 and case["mfu"] is None
    assert case["memory"].keys() == {"scoring", "training"}
    assert all(found["preflight_mib"] > 1 and found["measured_mib"] > 1 for found in case["memory"].values())


def test_reshard(small: dict[str, Any]) -> None:
    """2 layers of 164,352 numbers (attention 49,408, feed-forward 98,304, biases 256, norms 256), and the rest."""
    found = small["reshard"]
    numel = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 128 + 2 * 64 + 3 * 128 * 256 + 2 * 128) + 512 * 128 + 128
    assert found["copied_mib"] == round(numel * 2 / 2**20, 1)
    assert found["engine_memory"]["weights"]["preflight_of_measured"] == 1.0
    assert found["engine_memory"]["KV cache"] == {
        "measured_mib": 32.0,
        "preflight_mib": 32.0,
        "preflight_of_measured": 1.0,
    }
    assert all(parts["total"] > 0 for parts in found["seconds"].values())
    assert found["seconds"]["ours and proof"]["proof"] > 0 and "proof" not in found["seconds"]["ours"]
