"""Models of real shapes with random weights, as the smallest Hugging Face folders that trainer and engine take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_rapo.models import read_shape
from megatron_rapo.models.hf_weights import FolderWriter
from megatron_rapo.models.parameter_map import hf_shapes

DTYPE = torch.bfloat16
QWEN2_1B = {  # 1.02e9 parameters; between Qwen2.5's 0.5B and 1.5B, whose dimensions 128 does not divide
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 151_936,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
QWEN2_SMALL = QWEN2_1B | {  # 1.2M, to try on a CPU what is meant for a GPU; 128 divides its dimensions too
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
LLAMA_135M = {  # SmolLM2-135M's
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49_152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
}
LLAMA_10M = LLAMA_135M | {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
}
LLAMA_1M = LLAMA_135M | {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
}
CPU_SIZES = {"1M": LLAMA_1M, "10M": LLAMA_10M, "135M": LLAMA_135M}
"""Models that two cores train, by their parameters."""


def write_model(folder: Path, config: Mapping[str, Any], *, tokenizer: bool = False) -> None:
    """`folder`, new: config.json and weights in DTYPE of standard deviation 0.02 (norms 1), as models begin.

    With a tokenizer, which an engine wants, of the words "<0>", "<1>", ... Random numbers are drawn on the GPU where
    there is one, and so are others than on a CPU.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    shapes = hf_shapes(read_shape(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    with FolderWriter(folder, shapes, DTYPE, "100GB") as writer:
        for name, shape in shapes.items():
            writer.write(name, _weight(name, shape, generator))
        writer.finish()
    if tokenizer:
        save_tokenizer(folder, config["vocab_size"])


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    return torch.randn(shape, generator=generator, device=generator.device).mul_(0.02)


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Save a tokenizer of token numbers with spaces between. Token 0 pads, token 1 ends a sequence."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"<{i}>": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<0>", eos_token="<1>").save_pretrained(folder)
