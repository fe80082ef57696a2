"""How this repository is run: sections of a configuration beyond what all variants share (our_side.py)."""

from __future__ import annotations

from benchmarks.grpo.variant import Variant

FLOAT32 = {"precision": {"dtype": "float32"}}
BFLOAT16 = {"precision": {"dtype": "bfloat16", "on_logprob_gap": "warn"}}
VARIANTS = {
    "DP2": Variant(processes=2, threads=1, settings=FLOAT32, contender=True),
    "DP2, bfloat16": Variant(processes=2, threads=1, dtype="bfloat16", settings=BFLOAT16, contender=True),
    "2 threads": Variant(settings=FLOAT32),
    "TP2": Variant(processes=2, threads=1, settings=FLOAT32 | {"parallel": {"tensor": 2}, "rollout": {"tensor": 2}}),
    "DP2, packed": Variant(processes=2, threads=1, settings=FLOAT32 | {"rollout": {"packed": True}}),
    "DP2, packed, bfloat16": Variant(
        processes=2, threads=1, dtype="bfloat16", settings=BFLOAT16 | {"rollout": {"packed": True}}
    ),
}
