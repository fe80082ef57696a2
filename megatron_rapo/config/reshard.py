"""The [reshard] section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatron_rapo.config.section import MAX_MIB, MAX_STEPS, Section


def _how_often(verify: Any) -> Any:
    if verify in ("every", "first") or (type(verify) is int and verify >= 1):
        return verify
    raise ValueError(
        f"reshard.verify={verify}: not a choice of which reshardings are proven; set it to every, first or a number of "
        "steps from 1 on."
    )


class ReshardConfig(Section):
    """Control how the trainer's weights move into the engine after every step."""

    bucket_mib: int = Field(default=512, ge=1, le=MAX_MIB)
    """Send and receive at most this much at a time in each process. Resharding adds this much memory to a process; an
    engine that packs its weights adds the parameters that are under way.

    Unit: MiB.
    """
    verify: Annotated[Literal["every", "first"] | int, BeforeValidator(_how_often)] = "every"
    """Choose which reshardings are proven by a digest of every tensor: every one, the first one after a start, or one
    in this many steps.

    Unit: steps.
    Limits: every, first, or a number from 1 on.
    Also called: weight sync check.
    """
    parity_every_steps: int = Field(default=10, ge=0, le=MAX_STEPS)
    """Compare engine and trainer on fixed prompts after every so many steps. One comparison at the start is always
    made. 0: no more.

    Unit: steps.
    """
