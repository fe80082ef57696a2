"""List the checkpoints that tests/mcore/test_optimizer_states.py saves and loads, by model and layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    f"{'tied' if tied else 'untied'} {vocab_size}x{hidden_size}": {
        "tied": tied,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": 4,
        "num_kv_heads": 2,
    }
    for tied in (True, False)
    for vocab_size, hidden_size in ((131, 160), (128, 128))
}
TIED, UNTIED, EVEN = "tied 131x160", "untied 131x160", ("tied 128x128", "untied 128x128")
LAYOUTS: dict[str, dict[str, Any]] = {  # the optimizer is a distributed one but for the last
    "PP2": {"parallel": {"pipeline": 2}},
    "PP2 VPP2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "TP2": {"parallel": {"tensor": 2}},
    "TP2 PP2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "PP2 bf16 whole": {
        "parallel": {"pipeline": 2},
        "precision": {"dtype": "bfloat16"},
        "optimizer": {"distributed": False},
    },
}
PROCESSES = (6, 4, 2)  # data-parallel 3, 2 and 1 with PP2


@dataclass(frozen=True)
class Case:
    """A checkpoint of `model`. Some processes save it, and as many or fewer load it."""

    model: str
    saved: str
    saved_on: int
    loaded: str
    loaded_on: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.saved} on {self.saved_on} -> {self.loaded} on {self.loaded_on}"

    @property
    def same_layout(self) -> bool:
        return (self.saved, self.saved_on) == (self.loaded, self.loaded_on)


def _same(model: str, layout: str, processes: int) -> Case:
    return Case(model, layout, processes, layout, processes)


CASES = [
    *(_same(model, layout, n) for n in PROCESSES for model in (TIED, UNTIED) for layout in ("PP2", "PP2 VPP2")),
    *(_same(model, layout, 6) for model in EVEN for layout in ("PP2", "PP2 VPP2")),  # padded for 3 ranks alone
    _same(TIED, "PP2 bf16 whole", 2),
    Case(TIED, "PP2", 6, "PP2", 4),
    Case(TIED, "PP2 VPP2", 6, "TP2", 4),
    Case(TIED, "PP2", 4, "TP2 PP2", 4),
    Case(TIED, "PP2 VPP2", 4, "TP2", 2),
    Case(UNTIED, "PP2", 4, "PP2 VPP2", 2),
]
