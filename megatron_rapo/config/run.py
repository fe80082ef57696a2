"""The [run] section."""

from __future__ import annotations

from pydantic import Field

from megatron_rapo.config.section import MAX_SECONDS, MAX_STEPS, FilePath, Section


class RunConfig(Section):
    """Say where the run is written, how long it is and how it is seeded."""

    folder: FilePath
    """Write everything about the run into this folder."""
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Train for this many steps. Each is one rollout with batch.optimizer_steps_per_rollout optimizer steps.

    Unit: steps.
    """
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed the data order and every sampled token.

    Unit: none.
    """
    deterministic: bool = False
    """Train on GPUs with kernels that give the same bits each time. They are slower, and an operation without such a
    kernel is an error. On a CPU every run is deterministic."""
    timeout_s: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """End a process with an error when it has waited this long for the others in a collective.

    Unit: seconds.
    Limits: above reward.budget_s.
    """
