"""A real Llama (135M parameters, 9 heads, 3 KV heads, 30 layers, tied) survives conversion to Megatron and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rapo.convert.logits import SAMPLE_TEXT, compare_logits, logits
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.source import open_source
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.convert.to_megatron import hf_to_megatron
from megatron_rapo.convert.verify import compare
from megatron_rapo.data import load_tokenizer

LAYOUTS = {
    "TP3": Layout(tensor=3),
    "TP3 PP2 VPP2": Layout(tensor=3, pipeline=2, virtual_pipeline=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(smollm2: Path, tmp_path: Path, layout: str) -> None:
    nothing = {"processes": 1, "progress": lambda _: None}
    hf_to_megatron(smollm2, tmp_path / "megatron", LAYOUTS[layout], dtype=torch.bfloat16, **nothing)
    assert not any(each.count for each in compare(*map(open_source, (smollm2, tmp_path / "megatron")), lambda _: None))
    back = tmp_path / "hf"
    megatron_to_hf(tmp_path / "megatron", back, like=None, dtype=None, max_shard_size="100MB", **nothing)
    expected = load_file(smollm2 / "model.safetensors")
    found = {name: tensor for file in back.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    tokenizer, same = (AutoTokenizer.from_pretrained(folder) for folder in (smollm2, back))
    assert same(SAMPLE_TEXT)["input_ids"] == tokenizer(SAMPLE_TEXT)["input_ids"]
    assert same.decode(same(SAMPLE_TEXT)["input_ids"]) == SAMPLE_TEXT
    difference = compare_logits(open_source(smollm2), open_source(back), None)
    assert difference.largest == 0.0 and difference.same_choice == difference.tokens > 50


def test_the_logits_are_those_of_transformers(smollm2: Path) -> None:
    token_ids = torch.tensor([load_tokenizer(smollm2).encode(SAMPLE_TEXT)])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)(token_ids).logits[0]
    assert torch.equal(logits(open_source(smollm2), token_ids), expected)
