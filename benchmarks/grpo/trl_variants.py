"""How TRL is run: what its GRPOConfig is given beyond what all variants share (trl_side.py)."""

from __future__ import annotations

from benchmarks.grpo.variant import Variant

PURE_BFLOAT16 = {"model_init_kwargs": {"dtype": "bfloat16"}}  # weights too; bf16 = true keeps those in float32
VARIANTS = {
    "2 threads": Variant(contender=True),
    "2 processes": Variant(processes=2, threads=1, contender=True),
    "2 threads, autocast": Variant(dtype="bfloat16", settings={"bf16": True}),
    "2 processes, autocast": Variant(processes=2, threads=1, dtype="bfloat16", settings={"bf16": True}),
    "2 threads, bfloat16": Variant(dtype="bfloat16", settings=PURE_BFLOAT16, contender=True),
    "2 processes, bfloat16": Variant(processes=2, threads=1, dtype="bfloat16", settings=PURE_BFLOAT16, contender=True),
    "4 micro-batches": Variant(settings={"gradient_accumulation_steps": 4}),
    "static cache": Variant(settings={"cache_implementation": "static"}),
    "torch.compile": Variant(settings={"torch_compile": True}),
    "Liger": Variant(settings={"use_liger_kernel": True}),
    "continuous batching": Variant(
        settings={
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": {"page_size": 16, "num_blocks": 2048, "max_batch_tokens": 2048},
        }
    ),
    "vLLM": Variant(settings={"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 576}),
}
