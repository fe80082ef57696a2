"""Random tiny models with a character tokenizer, saved as Hugging Face folders. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()

PAD, EOS, UNK = 0, 1, 2
CHARACTERS = "".join(chr(code) for code in range(32, 127)) + "\n"
NUM_TOKENS = 3 + len(CHARACTERS)  # 99: the three special tokens come first
FAMILY_SETTINGS: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}
"""Settings of transformers' configurations whose defaults are not implemented."""


def save_char_tokenizer(folder: Path) -> None:
    """A tokenizer with one token a printable ASCII character (and newline), ids 3 to 98; it adds no bos."""
    vocab = {"<pad>": PAD, "<eos>": EOS, "<unk>": UNK}
    vocab |= {character: 3 + i for i, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_tiny_model(
    folder: Path,
    *,
    tied: bool,
    family: str = "qwen2",
    vocab_size: int = 128,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    num_kv_heads: int = 1,
    seed: int = 0,
    intermediate_size: int | None = None,
    max_positions: int = 1024,
    gain: float = 1.5,
    head_dim: int | None = None,
) -> Path:
    """Write a float32 model with random weights, its config and a character tokenizer; return `folder`.

    `family` is transformers' name of it: qwen2, qwen3, llama or mistral. `tied` shares embedding and output weights (no
    lm_head.weight in the file). The head dimension, hidden_size / num_heads unless `head_dim` is given, must be one
    that vLLM has on the CPU (32, 64, 80, 96, ...). The MLP is 2 x hidden_size wide unless `intermediate_size` is given.
    Biases are not zero and norms not one, so that a lost or swapped one shows. A lower `gain` amplifies rounding less.
    Call it where there is no torch.distributed process group: with one, transformers 5 writes models on rank 0 only.
    """
    if vocab_size < NUM_TOKENS:
        raise ValueError(f"vocab_size={vocab_size}: the tokenizer has {NUM_TOKENS} tokens; use at least as many.")
    folder.mkdir(parents=True, exist_ok=True)
    save_char_tokenizer(folder)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim or hidden_size // num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **FAMILY_SETTINGS.get(family, {}),
    )
    model = AutoModelForCausalLM.from_config(config).float()
    _randomise(model, seed, gain)
    model.save_pretrained(folder)
    return folder


def load_reference(folder: Path) -> PreTrainedModel:
    """The saved model in transformers: float32, eager attention, no dropout."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int, gain: float) -> None:
    """Weights that (at gain 1.5) give logits of a spread of about one nat, so that sampling means something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5)
