"""Print preflight's results for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_rapo.models import ModelShape
from megatron_rapo.preflight.fit import SPARE, Estimate, Machine, Settings
from megatron_rapo.preflight.memory import Memory, engine_numel, parameters

GIB = 2**30


def to_json(
    found: Estimate,
    machine: Machine,
    *,
    fitting: bool,
    remedies: Sequence[Settings],
    suggestions: Sequence[Estimate] | None,
) -> str:
    """Return all results as JSON; bytes and seconds as numbers."""
    content = {
        "fits": fitting,
        "machine": dataclasses.asdict(machine),
        "states": {state: _memory(each) for state, each in found.states.items()},
        "host": _memory(found.host),
        "batch": dataclasses.asdict(found.batch) | {"tokens": found.batch.tokens},
        "traffic": dataclasses.asdict(found.traffic),
        "seconds": dict(found.seconds),
        "remedies": [dict(each) for each in remedies],
        "suggestions": [
            {"settings": layout_of(each), "seconds": dict(each.seconds), "most_bytes": most(each)}
            for each in suggestions or ()
        ],
    }
    return json.dumps(content, indent=2)


def show(
    model: ModelShape,
    found: Estimate,
    machine: Machine,
    *,
    fitting: bool,
    remedies: Sequence[Settings],
    suggestions: Sequence[Estimate] | None,
) -> None:
    """Print the results as tables on standard output."""
    console = Console() if Console().is_terminal else Console(width=120)
    console.print(_parameters(model, found), _states(found, machine), _batch(found), _seconds(found, machine))
    if fitting:
        console.print(f"fits, with {_free(found, machine):.1f} GiB of each GPU free{_little(found, machine)}.")
    else:
        console.print(f"does not fit: {_too_much(found, machine)}.")
        for remedy in remedies:
            console.print(f"  would fit with {_as_options(remedy)}")
        if not remedies:
            console.print("  no one or two settings would make it fit; take more GPUs, or --suggest.")
    if suggestions is not None and not suggestions:
        console.print(f"no layout leaves {SPARE:.0%} of each GPU free; take more GPUs or shorter sequences.")
    for place, each in enumerate(suggestions or (), 1):
        needs = f"about {_about(sum(each.seconds.values()))} s, {(most(each) + machine.overhead_bytes) / GIB:.1f} GiB"
        console.print(f"{place}. {needs}: {_as_options(layout_of(each))}", soft_wrap=True)


def most(found: Estimate) -> int:
    """Return the bytes of the state that needs most."""
    return max(state.total for state in found.states.values())


def layout_of(found: Estimate) -> dict[str, Any]:
    """Return the settings that `--suggest` chooses."""
    config = found.config
    return {
        "parallel.tensor": config.parallel.tensor,
        "parallel.sequence": config.parallel.sequence,
        "parallel.pipeline": config.parallel.pipeline,
        "rollout.tensor": config.rollout.tensor,
        "model.recompute": config.model.recompute,
        "optimizer.distributed": config.optimizer.distributed,
    }


def _parameters(model: ModelShape, found: Estimate) -> Table:
    table = Table("process of", "parameters", title="parameters of one process")
    for stage, numel in enumerate(parameters(model, found.config)):
        table.add_row(f"the trainer, stage {stage}", f"{numel:,}")
    table.add_row("the engine", f"{engine_numel(model, found.config.rollout.tensor):,}")
    return table


def _states(found: Estimate, machine: Machine) -> Table:
    """Build a table with a column for every state and a row for every part."""
    title = f"GiB of the process that needs most, of {machine.memory_bytes / GIB:.0f}"
    table = Table("", *found.states, "host", title=title)
    columns = [*found.states.values(), found.host]
    for part in dict.fromkeys(part for each in columns for part in each.parts):
        table.add_row(part, *(f"{each.parts[part] / GIB:.2f}" if part in each.parts else "" for each in columns))
    overhead = f"{machine.overhead_bytes / GIB:.2f}"
    table.add_row("CUDA, NCCL, workspaces (assumed)", *([overhead] * len(found.states)), "")
    totals = [f"{(each.total + machine.overhead_bytes) / GIB:.2f}" for each in found.states.values()]
    table.add_row("together", *totals, f"{found.host.total / GIB:.2f}", style="bold")
    table.add_row("pipeline stage", *(str(each.stage) for each in columns))
    return table


def _batch(found: Estimate) -> Table:
    table = Table("", "", title="a step", show_header=False)
    sizes = found.batch
    for name, value in (
        ("prompts", f"{sizes.prompts:,}"),
        ("completions", f"{sizes.completions:,}"),
        ("completions of an engine", f"{sizes.completions_per_engine:,}"),
        ("tokens of a sequence (assumed)", f"{sizes.tokens_per_sequence:,.0f}"),
        ("optimizer steps", f"{sizes.optimizer_steps:,}"),
        ("sequences of an optimizer step", f"{sizes.sequences_per_optimizer_step:,}"),
        ("of these on a data-parallel rank", f"{sizes.sequences_per_data_rank:,.1f}"),
        ("its micro-batches", f"{sizes.microbatches_per_data_rank:,}"),
        ("pipeline bubble", f"{sizes.bubble:.1%}"),
        ("resharding, copied by a process", f"{found.traffic.copied / GIB:.2f} GiB"),
        ("resharding, sent by a process", f"{found.traffic.sent / GIB:.2f} GiB"),
        ("gradients, sent by a process", f"{found.traffic.gradients / GIB:.2f} GiB"),
        ("tensor parallelism, sent by a process", f"{found.traffic.tensor_parallel / GIB:.2f} GiB"),
    ):
        table.add_row(name, value)
    return table


def _seconds(found: Estimate, machine: Machine) -> Table:
    hardware = machine.hardware
    title = f"estimated seconds of a step, {machine.gpus} {hardware.name}"
    caption = (
        f"reckoned with {hardware.bf16_flops / 1e12:.0f} TFLOP/s at {hardware.utilisation:.0%} and "
        f"{hardware.memory_bytes_per_s / 1e12:.2f} TB/s at {hardware.bandwidth:.0%}"
    )
    table = Table("phase", "s", title=title, caption=caption, min_width=60)
    for phase, value in found.seconds.items():
        table.add_row(phase, _about(value))
    table.add_row("together", _about(sum(found.seconds.values())), style="bold")
    return table


def _too_much(found: Estimate, machine: Machine) -> str:
    over = {state: each.total - machine.usable for state, each in found.states.items()}
    return ", ".join(f"{state} by {more / GIB:.1f} GiB" for state, more in over.items() if more > 0)


def _free(found: Estimate, machine: Machine) -> float:
    return (machine.usable - most(found)) / GIB


def _little(found: Estimate, machine: Machine) -> str:
    """Return a warning if less memory is free than a suggested layout would leave."""
    if _free(found, machine) >= SPARE * machine.memory_bytes / GIB:
        return ""
    return f"; that is little for what is not counted: {SPARE:.0%} free is safe"


def _about(seconds: float) -> str:
    """Round to two digits: the estimate is rough."""
    return f"{float(f'{seconds:.2g}'):g}"


def _memory(each: Memory) -> dict[str, Any]:
    return {"stage": each.stage, "bytes": dict(each.parts), "total": each.total}


def _as_options(settings: Settings) -> str:
    """Return settings as options of the command line."""
    return " ".join(f"--set {name}={json.dumps(value).strip(chr(34))}" for name, value in settings.items())
