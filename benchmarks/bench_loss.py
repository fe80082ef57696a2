"""Memory and time of a loss from hidden states, forward and backward: whole logits against chunks of them.

    python -m benchmarks.bench_loss [--check] [--size T,V,D] [--threads N] [--sides NAME ...] > result.json
    python -m benchmarks.bench_loss --device cuda --dtype bfloat16 [--check] > result.json
    python -m benchmarks.bench_loss --table result.json

Every side of a quantity makes the same scalar out of the same hidden states [T, D], output weight [V, D] and targets
[T], and takes its gradient by hidden states and weight; these gradients (4 D (T + V) bytes in float32) count in every
side's memory. A measurement is one forward and backward, on a CPU in a fresh process. Sides take turns, and a ratio is
the median of the turns' ratios, so that a machine that slows down slows both.

T tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.environment import conclude, environment, refuse_without_gpu, say
from benchmarks.memory import available_bytes, peak_bytes, reset_peak_bytes
from megatron_rapo.scoring.output_head import ReferenceHead, token_scores

BASE = "naive-sampled"  # what the targets are ratios to
SIZES = ((4096, 151_936, 512), (2048, 32_000, 512))
GPU_SIZES = ((8192, 151_936, 2048),)
MEMORY_TARGET = 1 / 8  # at the first of either; where the logits are small, chunks of them are not much smaller
TIME_TARGETS = {"ours-sampled": 1.4, "ours-forward_kl": 3.0, "ours-reverse_kl": 3.0}


@dataclass(frozen=True, kw_only=True)
class Case:
    tokens: int
    vocab_size: int
    hidden_size: int
    dtype: str
    device: str
    threads: int

    @property
    def logits_bytes(self) -> int:
        return self.tokens * self.vocab_size * getattr(torch, self.dtype).itemsize


class Inputs(NamedTuple):
    hidden_TD: Tensor
    weight_VD: Tensor
    targets_T: Tensor
    coefficients_3T: Tensor  # of log-probability, entropy and KL in the loss
    reference: ReferenceHead


class Measurement(NamedTuple):
    peak_extra_mib: float  # above what there was once the inputs were made
    wall_s: float
    cpu_s: float  # of all threads, in the program and in the kernel
    result: dict[str, float]  # the loss, and the norms of its gradients


# The sides.

Quantity = Literal["logp", "sampled", "forward_kl", "reverse_kl"]  # sampled: log-probability and entropy


def naive(inputs: Inputs, quantity: Quantity) -> Tensor:
    logp_TV = (inputs.hidden_TD @ inputs.weight_VD.T).float().log_softmax(-1)
    values = [logp_TV.gather(1, inputs.targets_T[:, None])[:, 0]]
    if quantity != "logp":
        p_TV = logp_TV.exp()
        values.append(-(p_TV * logp_TV).sum(-1))
    if quantity.endswith("kl"):
        reference = inputs.reference
        logits_TV = (reference.hidden_TD @ reference.weight_VpD.T).float()
        ref_logp_TV = logits_TV.mul_(reference.scale_T[:, None]).log_softmax(-1)
        del logits_TV
        if quantity == "forward_kl":
            values.append((ref_logp_TV.exp() * (ref_logp_TV - logp_TV)).sum(-1))
        else:
            values.append((p_TV * (logp_TV - ref_logp_TV)).sum(-1))
    return loss_of(inputs, values)


def ours(inputs: Inputs, quantity: Quantity) -> Tensor:
    reference = None
    if quantity == "forward_kl":
        reference = replace(inputs.reference, direction="forward")
    elif quantity == "reverse_kl":
        reference = replace(inputs.reference, direction="reverse")
    scores = token_scores(
        inputs.hidden_TD,
        inputs.weight_VD,
        inputs.targets_T,
        torch.ones_like(inputs.reference.scale_T),
        vocab_size=len(inputs.weight_VD),
        reference=reference,
    )
    if quantity == "logp":
        return loss_of(inputs, [scores.logp_T])
    return loss_of(inputs, [value_T for value_T in scores if value_T is not None])


def trl(inputs: Inputs, quantity: Quantity) -> Tensor:
    """Compute the loss as TRL's GRPO trainer does, from all logits."""
    utils = importlib.import_module("trl.trainer.utils")
    logits_TV = inputs.hidden_TD @ inputs.weight_VD.T
    return loss_of(inputs, utils.selective_log_softmax_and_entropy(logits_TV, inputs.targets_T))


def liger(inputs: Inputs, quantity: Quantity) -> Tensor:
    """Compute Liger's GRPO loss, without entropy. On-policy its gradient is that of the others."""
    grpo = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss(
        beta=0.0,
        compiled=False,
        use_ref_model=False,
        loss_type="dr_grpo",
        max_completion_length=1,  # sequences of one token, which give each a weight of its own;
        chunk_size=len(inputs.targets_T),  # all in one chunk, of which it makes tiles of its own
    )
    loss: Tensor
    loss, _ = grpo(
        inputs.hidden_TD[:, None],
        inputs.weight_VD,
        inputs.targets_T[:, None],
        torch.ones_like(inputs.targets_T[:, None]),
        -inputs.coefficients_3T[0],
    )
    return loss


def loss_of(inputs: Inputs, values: Sequence[Tensor]) -> Tensor:
    terms = [(c_T * value_T).mean() for c_T, value_T in zip(inputs.coefficients_3T, values, strict=False)]
    return torch.stack(terms).sum()


class Side(NamedTuple):
    make_loss: Callable[[Inputs, Quantity], Tensor]
    quantity: Quantity
    whole_logits: int = 0  # float32 [T, V] that it holds at a time, so that it is not started where they do not fit
    package: str | None = None  # that it needs
    has_value: bool = True  # else its loss is another, with the same gradient


SIDES = {
    BASE: Side(naive, "sampled", whole_logits=5),
    "ours-sampled": Side(ours, "sampled"),
    "ours-forward_kl": Side(ours, "forward_kl"),
    "ours-reverse_kl": Side(ours, "reverse_kl"),
    "naive-forward_kl": Side(naive, "forward_kl", whole_logits=7),
    "naive-reverse_kl": Side(naive, "reverse_kl", whole_logits=7),
    "trl-sampled": Side(trl, "sampled", whole_logits=5, package="trl"),
    "naive-logp": Side(naive, "logp", whole_logits=3),
    "ours-logp": Side(ours, "logp"),
    "liger-logp": Side(liger, "logp", package="liger_kernel", has_value=False),
}


# One measurement.


def make_inputs(case: Case) -> Inputs:
    dtype: torch.dtype = getattr(torch, case.dtype)
    generator = torch.Generator(case.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device, dtype=dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=case.device)

    def head() -> tuple[Tensor, Tensor]:  # logits of standard deviation 2
        return normal(case.tokens, case.hidden_size), normal(case.vocab_size, case.hidden_size).mul_(
            2 / case.hidden_size**0.5
        )

    hidden_TD, weight_VD = head()
    ref_hidden_TD, ref_weight_VD = head()
    return Inputs(
        hidden_TD.requires_grad_(),
        weight_VD.requires_grad_(),
        torch.randint(case.vocab_size, (case.tokens,), generator=generator, device=case.device),
        uniform(3, case.tokens),
        ReferenceHead(
            hidden_TD=ref_hidden_TD, weight_VpD=ref_weight_VD, scale_T=uniform(case.tokens), direction="forward"
        ),
    )


def measure(case: Case, name: str) -> Measurement:
    """Measure one side. On a CPU call this in a new process, so that its peak memory is this side's."""
    torch.set_num_threads(case.threads)
    on_gpu = case.device != "cpu"
    # Before the clock starts: imports, threads, a GPU's kernels and workspaces, which depend on sizes.
    run_on(make_inputs(case if on_gpu else replace(case, tokens=16, vocab_size=256)), name)
    inputs = make_inputs(case)
    before = reset_peak_bytes(case.device)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    loss = run_on(inputs, name)
    if on_gpu:
        torch.cuda.synchronize()
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return Measurement((peak_bytes(case.device) - before) / 2**20, wall_s, cpu_s, result_of(inputs, loss))


def run_on(inputs: Inputs, name: str) -> Tensor:
    loss = SIDES[name].make_loss(inputs, SIDES[name].quantity)
    loss.backward()
    return loss.detach()


def result_of(inputs: Inputs, loss: Tensor) -> dict[str, float]:
    assert inputs.hidden_TD.grad is not None and inputs.weight_VD.grad is not None
    return {
        "loss": float(loss),
        "hidden_gradient": float(torch.linalg.vector_norm(inputs.hidden_TD.grad, dtype=torch.float64)),
        "weight_gradient": float(torch.linalg.vector_norm(inputs.weight_VD.grad, dtype=torch.float64)),
    }


# All of them.


def measure_apart(case: Case, name: str) -> Measurement:
    """Measure one side in a new process. A GPU does not need that: its allocator can reset the peak."""
    if case.device != "cpu":
        return measure(case, name)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, case, name).result()


def why_not(case: Case, name: str) -> str | None:
    """Return why this side cannot be measured, or None."""
    side = SIDES[name]
    if side.package and importlib.util.find_spec(side.package) is None:
        return f"{side.package} is not installed"
    needed_gib = side.whole_logits * case.tokens * case.vocab_size * 4 / 2**30
    available_gib = available_bytes(case.device) / 2**30
    if needed_gib > 0.8 * available_gib:  # others grow, too
        return f"needs about {needed_gib:.0f} GiB, and a fifth of the {available_gib:.0f} available is left to others"
    return None


def measure_sides(case: Case, names: Sequence[str], repeats: int) -> dict[str, Any]:
    measured: dict[str, list[Measurement]] = {name: [] for name in names}
    not_measured: dict[str, str] = {}
    for turn in range(repeats):
        for name in names:
            reason = not_measured.get(name) or why_not(case, name)
            if reason is None:
                try:
                    taken = measure_apart(case, name)
                    say(
                        f"T={case.tokens} V={case.vocab_size} threads={case.threads} turn {turn + 1}/{repeats} {name}: "
                        f"{taken.peak_extra_mib:.0f} MiB, {taken.wall_s:.1f} s ({taken.cpu_s:.1f} s of CPU)"
                    )
                    measured[name].append(taken)
                except (BrokenProcessPool, ImportError, torch.OutOfMemoryError) as error:
                    reason = f"{type(error).__name__}: {error}"
            if reason is not None:
                not_measured[name] = reason
    complete = {name: taken for name, taken in measured.items() if name not in not_measured}
    return {
        **asdict(case),
        "whole_logits_mib": round(case.logits_bytes / 2**20, 1),
        "sides": {name: summary(name, complete) for name in complete},
        "not_measured": not_measured,
    }


def summary(name: str, measured: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """Return median, spread and ratios of each figure, and the largest error against the naive result."""
    naive_name = f"naive-{SIDES[name].quantity}"
    compared = [other for other in dict.fromkeys((BASE, naive_name)) if other in measured]
    figures: dict[str, Any] = {}
    for figure in ("peak_extra_mib", "wall_s", "cpu_s"):
        values = [getattr(each, figure) for each in measured[name]]
        numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for other in compared:
            others = [getattr(each, figure) for each in measured[other]]
            numbers[f"of_{other}"] = statistics.median(a / b for a, b in zip(values, others, strict=True))
        figures[figure] = {key: round(number, 3) for key, number in numbers.items()}
    if naive_name in measured:
        found, expected = measured[name][0].result, measured[naive_name][0].result
        keys = expected.keys() if SIDES[name].has_value else expected.keys() - {"loss"}
        error = max(abs(found[key] - expected[key]) / abs(expected[key]) for key in keys)
        figures[f"error_against_{naive_name}"] = float(f"{error:.1e}")
    return figures


def targets_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of our sides, and whether they are met."""
    size = {key: case[key] for key in ("tokens", "vocab_size", "hidden_size", "threads")}
    figures = {"wall_s": TIME_TARGETS}
    if tuple(size.values())[:3] in (SIZES[0], GPU_SIZES[0]):
        figures["peak_extra_mib"] = dict.fromkeys(TIME_TARGETS, MEMORY_TARGET)
    targets = []
    for figure, limits in figures.items():
        for side, at_most in limits.items():
            ratio = case["sides"].get(side, {}).get(figure, {}).get(f"of_{BASE}")
            if ratio is not None:
                found = {"side": side, "figure": figure, f"of_{BASE}": ratio, "at_most": at_most}
                targets.append(size | found | {"met": ratio <= at_most})
    return targets


def table(result: Mapping[str, Any]) -> str:
    """Format the figures as Markdown: medians, and in brackets their ratios to BASE."""
    tables = []
    for case in result["cases"]:
        rows = [
            "T = {tokens:,}, V = {vocab_size:,}, D = {hidden_size}, {dtype}, threads: {threads}\n".format(**case),
            "| side | peak extra memory, MiB | time, s | CPU time, s |",
            "|---|---|---|---|",
        ]
        for name, side in case["sides"].items():
            cells = [name]
            for figure, digits in (("peak_extra_mib", 0), ("wall_s", 1), ("cpu_s", 1)):
                numbers = side[figure]
                ratio = f" ({numbers[f'of_{BASE}']:.2f})" if f"of_{BASE}" in numbers else ""
                cells.append(f"{numbers['median']:,.{digits}f}{ratio}")
            rows.append(f"| {' | '.join(cells)} |")
        rows += [f"| {name} | not measured: {reason} | | |" for name, reason in case["not_measured"].items()]
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def size(text: str) -> tuple[int, int, int]:
    tokens, vocab_size, hidden_size = map(int, text.split(","))
    return tokens, vocab_size, hidden_size


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Memory and time of a loss from hidden states; prints JSON.")
    parser.add_argument(
        "--size", type=size, action="append", metavar="T,V,D", help="may be repeated; default: what targets are for"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of torch; each number is a case")
    parser.add_argument("--repeats", type=int, default=3, help="turns that every side takes")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="NAME", help=", ".join(SIDES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of hidden states, weight")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this result in Markdown")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if options.device == "cuda":
        refuse_without_gpu("--device cuda")
    machine = environment("trl", "liger-kernel")
    cases = [
        measure_sides(
            Case(
                tokens=tokens,
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                dtype=options.dtype,
                device=options.device,
                threads=threads,
            ),
            options.sides,
            options.repeats,
        )
        for tokens, vocab_size, hidden_size in options.size or (GPU_SIZES if options.device == "cuda" else SIZES)
        for threads in options.threads
    ]
    targets = [target for case in cases for target in targets_of(case)]
    if options.check and not targets:
        say(f"nothing to check: --sides must name {BASE} and one of {', '.join(TIME_TARGETS)}")
    result = {"machine": machine, "repeats": options.repeats, "cases": cases, "targets": targets}
    return conclude(result, check=options.check) or int(options.check and not targets)


if __name__ == "__main__":
    sys.exit(main())
