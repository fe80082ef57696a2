"""Operations between matrix products: both sides do the same, and a run in small."""

from __future__ import annotations

import json

import pytest
import torch
from megatron.core.transformer import TransformerConfig

from benchmarks import bench_layers
from benchmarks.models import CPU_SIZES
from megatron_rapo.mcore.torch_layers.swiglu import SwiGLU


def test_what_is_compared_is_the_same() -> None:
    x = torch.randn(3, 1, 8)
    ours = SwiGLU(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))
    torch.testing.assert_close(bench_layers.megatron_glu(x), ours(x))


def test_a_run_in_small(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_layers, "TOKENS", 16)
    threads = torch.get_num_threads()
    try:
        assert bench_layers.main(["--model", "1M", "--repeats", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    assert [case["operation"] for case in result["cases"]] == ["SwiGLU", "RMSNorm", "AdamW"]
    assert all(case["sides"]["own"]["of_own"] == 1.0 for case in result["cases"])
    assert len(bench_layers.table(result).splitlines()) == 2 + 3
    assert set(CPU_SIZES) >= {case["model"] for case in result["cases"]}
