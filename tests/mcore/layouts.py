"""List every layout and every setting of `layout_worker.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    nproc: int
    model: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the configuration


TENSOR, PIPELINE, CONTEXT = {"tensor": 2}, {"pipeline": 2}, {"context": 2}
DISTRIBUTED = {"distributed": True}
LAYOUTS = {
    "TP1 untied": Layout(1, "untied"),
    "TP1 tied": Layout(1, "tied"),
    "TP2 tied": Layout(2, "tied", {"parallel": TENSOR}),
    "TP2 SP tied": Layout(2, "tied", {"parallel": TENSOR | {"sequence": True}}),
    "PP2 tied": Layout(2, "tied", {"parallel": PIPELINE}),
    "PP2 VPP2 tied": Layout(2, "tied", {"parallel": PIPELINE | {"virtual_pipeline": 2}}),
    "DP2 untied": Layout(2, "untied"),
    "DP2 distributed optimizer tied": Layout(2, "tied", {"optimizer": DISTRIBUTED}),
    "CP2 untied": Layout(2, "untied", {"parallel": CONTEXT}),
    "TP2 recompute full tied": Layout(2, "tied", {"parallel": TENSOR, "model": {"recompute": "full"}}),
    "TP2 recompute selective tied": Layout(2, "tied", {"parallel": TENSOR, "model": {"recompute": "selective"}}),
    "TP4 tied": Layout(4, "tied", {"parallel": {"tensor": 4}}),  # of 2 KV heads, so that two ranks share one
    "TP2 PP2 untied": Layout(4, "untied", {"parallel": TENSOR | PIPELINE}),
    "TP2 CP2 SP tied": Layout(4, "tied", {"parallel": TENSOR | CONTEXT | {"sequence": True}}),
    "PP2 CP2 untied": Layout(4, "untied", {"parallel": PIPELINE | CONTEXT}),
    # Other families; five layers, which no number of chunks but one divides.
    "TP1 qwen3": Layout(1, "qwen3"),
    "PP2 VPP2 qwen3": Layout(2, "qwen3", {"parallel": PIPELINE | {"virtual_pipeline": 2}}),
    "TP4 SP qwen3": Layout(4, "qwen3", {"parallel": {"tensor": 4, "sequence": True}}),  # of 2 KV heads
    "TP1 llama": Layout(1, "llama"),
    "TP2 PP2 llama": Layout(4, "llama", {"parallel": TENSOR | PIPELINE}),
    "TP1 mistral": Layout(1, "mistral"),
    "TP2 PP2 mistral": Layout(4, "mistral", {"parallel": TENSOR | PIPELINE}),
    "TP2 DP2 distributed optimizer untied": Layout(4, "untied", {"parallel": TENSOR, "optimizer": DISTRIBUTED}),
}
BF16 = "TP2 DP2 bf16 tied"
ALL = LAYOUTS | {
    BF16: Layout(4, "tied", {"precision": {"dtype": "bfloat16"}, "parallel": TENSOR, "optimizer": DISTRIBUTED})
}

SAMPLED = "forward_kl"
MEASURED = "forward_kl, with measurements of the gradient in between"
MEASURED_LAYOUTS = (
    "TP1 untied",
    "TP1 tied",
    "TP2 SP tied",
    "PP2 VPP2 tied",
    "DP2 distributed optimizer tied",
    "CP2 untied",
    BF16,
)
SHARED_PROMPTS = {  # batch.share_prompts, on a rollout of groups
    "TP1 untied": (False, True),
    "TP1 tied": (False, True),
    "TP2 SP tied": (True,),
    "PP2 VPP2 tied": (True,),
    "DP2 untied": (True,),
    "TP2 PP2 untied": (True,),
    "TP1 qwen3": (False, True),
    "TP4 SP qwen3": (True,),
}
# alpha: the exact divergences count in the loss and its gradient
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    SAMPLED: {},
    "forward_kl_exact, ratio of sequences": {
        "algorithm": {"divergence": "forward_kl_exact", "alpha": 1.0, "ratio": "sequence"},
        "rollout": {"temperature": 0.7},
    },
    "reverse_kl_exact, mean over sequences": {
        "algorithm": {"divergence": "reverse_kl_exact", "alpha": 1.0, "aggregation": "sequence"},
        "rollout": {"temperature": 1.4},
    },
}
EXACT_LAYOUTS = (  # of those that differ in what an exact KL is computed from and summed over
    "TP1 untied",
    "TP1 tied",
    "TP2 tied",
    "TP2 SP tied",
    "TP4 tied",
    "PP2 tied",
    "PP2 VPP2 tied",
    "DP2 untied",
    "CP2 untied",
    "TP2 PP2 untied",
    "TP2 CP2 SP tied",
    BF16,
)
TRAINED = [(layout, setting) for layout in ALL for setting in SETTINGS if setting == SAMPLED or layout in EXACT_LAYOUTS]
"""What is trained with what."""


def one_process(layout: str) -> str:
    """Return the layout on one process whose results this layout's must equal."""
    return f"TP1 {ALL[layout].model}"
