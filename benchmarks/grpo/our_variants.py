"""How this repository is run: sections of a configuration beyond what all variants share (our_side.py)."""

from __future__ import annotations

from benchmarks.grpo.variant import Variant

FLOAT32 = {"precision": {"dtype": "float32"}}
BFLOAT16 = {"precision": {"dtype": "bfloat16", "on_logprob_gap": "warn"}}
FASTER = {"rollout": {"packed": True}, "batch": {"share_prompts": True}}  # what a CPU gains from; off by default
COMPILED = {"packed": True, "compile": True}
VARIANTS = {
    "DP2": Variant(processes=2, threads=1, settings=FLOAT32 | FASTER, contender=True),
    "DP2, compiled, bfloat16": Variant(
        processes=2, threads=1, dtype="bfloat16", settings=BFLOAT16 | FASTER | {"rollout": COMPILED}, contender=True
    ),
    "DP2, defaults": Variant(processes=2, threads=1, settings=FLOAT32),
    "DP2, old policy scored": Variant(
        processes=2,
        threads=1,
        settings=FLOAT32 | FASTER | {"batch": {"share_prompts": True, "old_logprobs_from_training": False}},
    ),
    "DP2, compiled": Variant(processes=2, threads=1, settings=FLOAT32 | FASTER | {"rollout": COMPILED}, contender=True),
    "2 threads": Variant(settings=FLOAT32 | FASTER),
    "TP2": Variant(
        processes=2,
        threads=1,
        settings=FLOAT32 | FASTER | {"parallel": {"tensor": 2}, "rollout": {"packed": True, "tensor": 2}},
    ),
}
