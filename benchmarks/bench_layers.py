"""What torch's layers and optimizer do between their matrix products: ours against Megatron's or torch's own.

    python -m benchmarks.bench_layers [--repeats N] > result.json
    python -m benchmarks.bench_layers --table result.json

Forward and backward of SwiGLU and RMSNorm on as many tokens as a micro-batch has, and one update of AdamW, at the
widths of models.CPU_SIZES. Sides take turns in one process with one thread; a ratio is the median of the turns'.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from benchmarks.environment import conclude, environment, say
from benchmarks.models import CPU_SIZES
from benchmarks.turns import Side, figures, take_turns
from megatron_rapo.mcore.torch_layers.rms_norm import RMSNorm
from megatron_rapo.mcore.torch_layers.swiglu import SwiGLU

TOKENS = 2048
EPS = 1e-5


def megatron_glu(gate_and_up: Tensor) -> Tensor:
    """Compute SwiGLU as Megatron's MLP does without fusion (megatron-core 0.16.1)."""
    gate, up = torch.chunk(gate_and_up, 2, dim=-1)
    return F.silu(gate) * (up + 0.0)


def forward_backward(layer: Callable[[Tensor], Tensor], inputs: Tensor, grad: Tensor) -> None:
    torch.autograd.backward(layer(inputs), grad)
    inputs.grad = None


def sides(model: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Side]]]:
    """Yield the compared sides by the name of the operation."""
    hidden, features = model["hidden_size"], model["intermediate_size"]
    megatron = TransformerConfig(num_layers=1, hidden_size=hidden, num_attention_heads=1)
    wide = torch.randn(TOKENS, 1, 2 * features, requires_grad=True)
    narrow = torch.randn(TOKENS, 1, features)
    layers: dict[str, Callable[[Tensor], Tensor]] = {"own": megatron_glu, "ours": SwiGLU(megatron)}
    yield "SwiGLU", {name: partial(forward_backward, layer, wide, narrow) for name, layer in layers.items()}

    x, grad = torch.randn(TOKENS, 1, hidden, requires_grad=True), torch.randn(TOKENS, 1, hidden)
    norms: dict[str, Callable[[Tensor], Tensor]] = {
        "own": torch.nn.RMSNorm(hidden, eps=EPS),
        "ours": RMSNorm(megatron, hidden, EPS),
    }
    yield "RMSNorm", {name: partial(forward_backward, norm, x, grad) for name, norm in norms.items()}

    weights = [torch.nn.Parameter(torch.randn(2 * features, hidden)) for _ in range(model["num_hidden_layers"])]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizers = {"own": torch.optim.AdamW(weights), "ours": torch.optim.AdamW(weights, fused=True)}
    yield "AdamW", {name: optimizer.step for name, optimizer in optimizers.items()}


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown, in milliseconds."""
    rows = ["| | | before, ms | ours, ms | ratio |", "|---|---|---|---|---|"]
    for case in result["cases"]:
        own, ours = case["sides"]["own"], case["sides"]["ours"]
        cells = [case["operation"], case["model"], *(f"{side['wall_s'] * 1e3:.2f}" for side in (own, ours))]
        rows.append(f"| {' | '.join(cells)} | {ours['of_own']:.2f} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Operations between matrix products; prints JSON.")
    parser.add_argument("--model", nargs="+", choices=CPU_SIZES, default=list(CPU_SIZES), metavar="SIZE")
    parser.add_argument("--repeats", type=int, default=21, help="turns that every side takes")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    machine, cases = environment("megatron-core"), []
    torch.set_num_threads(1)
    for size in options.model:
        for operation, compared in sides(CPU_SIZES[size]):
            found = figures(take_turns(compared, options.repeats), "own")
            cases.append({"operation": operation, "model": size, "sides": found})
            say(str(cases[-1]))
    return conclude({"machine": machine, "repeats": options.repeats, "cases": cases, "targets": []}, check=False)


if __name__ == "__main__":
    sys.exit(main())
