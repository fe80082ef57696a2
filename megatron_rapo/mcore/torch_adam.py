"""Adapt torch's AdamW to Megatron's optimizer, for machines without apex and Transformer Engine."""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, distrib_optimizer


@functools.cache
def install() -> None:
    """Patch megatron-core 0.16.1's distributed optimizer for this process, once, if it uses torch's Adam.

    Loading a `fully_reshardable` checkpoint omits `step` (KeyError). Afterwards all parameters share one `step` tensor,
    which Adam then advances once per parameter, so its bias correction would be wrong after a resume.
    """
    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    optimizer = distrib_optimizer.DistributedOptimizer
    set_states, load_state_dict = optimizer._set_main_param_and_optimizer_states, optimizer.load_state_dict

    def set_states_with_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> Any:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state:
            tensors.setdefault("step", state["step"])
        return set_states(self, model_param, tensors)

    def load_with_own_steps(self: Any, state_dict: Any) -> None:
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    optimizer._set_main_param_and_optimizer_states = set_states_with_step
    optimizer.load_state_dict = load_with_own_steps


def parts(optimizer: MegatronOptimizer) -> list[Any]:
    """Return Megatron's optimizers as a list: one, or the members of a chain."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def fuse_on_cpu(optimizer: MegatronOptimizer) -> None:
    """Make an update read and write each parameter and its state in one pass, on a CPU."""
    for part in parts(optimizer):
        for group in part.optimizer.param_groups if isinstance(part.optimizer, torch.optim.AdamW) else ():
            group["fused"] = all(parameter.device.type == "cpu" for parameter in group["params"])
