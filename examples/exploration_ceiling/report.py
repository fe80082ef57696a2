r"""Write tables (report.md) and figures of a study's results.

    python -m examples.exploration_ceiling.report RESULTS --output FOLDER

RESULTS is a folder of records, by default the recorded study's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from examples.exploration_ceiling.problems import KINDS
from examples.exploration_ceiling.records import (
    BASE,
    BASE_AGAIN,
    Estimate,
    Record,
    Table,
    estimate,
    expected_pass_at,
    read_records,
)
from examples.exploration_ceiling.study import METHODS

HERE = Path(__file__).parent
LABELS = {
    BASE: "base",
    BASE_AGAIN: "base, other samples",
    "none": "no KL",
    "none_slow": "no KL, half the rate",
    "reverse_kl": "reverse KL",
    "k3": "plain k3",
    "forward_kl": "forward KL",
    "rapo_paper": "RAPO, paper",
    "rapo_exact": "RAPO, exact",
    "rapo_exact_half": "RAPO, exact, phi from 0.5",
}
COLOURS = {
    BASE: "#000000",
    BASE_AGAIN: "#999999",
    "none": "#D55E00",
    "none_slow": "#F0E442",
    "reverse_kl": "#E69F00",
    "k3": "#CC79A7",
    "forward_kl": "#009E73",
    "rapo_paper": "#56B4E9",
    "rapo_exact": "#0072B2",
    "rapo_exact_half": "#5B3A8E",
}  # Okabe and Ito's, which the colour-blind can tell apart
NEVER = "never solved by the base"


def powers_of_two(samples: int) -> list[int]:
    """Return 1, 2, 4, ... up to `samples`."""
    return [1 << power for power in range(samples.bit_length()) if 1 << power <= samples]


def show(value: Estimate, *, signed: bool = False, digits: int = 3) -> str:
    sign = "+" if signed else ""
    return f"{value.mean:{sign}.{digits}f} ({value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def pass_table(table: Table, kind: str) -> str:
    """Show pass@k of every model, with intervals at the smallest and the largest k."""
    ks = [k for k in (1, 4, 16, 64, 256) if k <= table.samples]
    values_MSPK = table.pass_at_MSPK(kind, ks)
    rows = [
        [LABELS[method], *(show(estimate(values_SPK[..., i])) for i in range(len(ks)))]
        for method, values_SPK in zip(table.methods, values_MSPK, strict=True)
    ]
    return markdown([kind, *(f"pass@{k}" for k in ks)], rows)


def difference_table(table: Table, kind: str, other: str) -> str:
    """Show pass@k minus that of `other`, paired by problem and seed."""
    ks = [k for k in (1, 16, 256) if k <= table.samples]
    values_MSPK = table.pass_at_MSPK(kind, ks)
    reference_SPK = values_MSPK[table.methods.index(other)]
    rows = [
        [
            LABELS[method],
            *(show(estimate(values_SPK[..., i] - reference_SPK[..., i]), signed=True) for i in range(len(ks))),
        ]
        for method, values_SPK in zip(table.methods, values_MSPK, strict=True)
        if method != other
    ]
    return markdown([f"{kind}, minus {LABELS[other]}", *(f"pass@{k}" for k in ks)], rows)


def discovery_table(table: Table) -> str:
    """Show the mean number per seed of solved problems that the base never solves, and the other way round."""
    rows = []
    for index, method in enumerate(table.methods):
        if method == BASE:
            continue
        cells = [LABELS[method]]
        for kind in KINDS:
            solved_MSP = table.solved_MSP(kind)
            base_SP, this_SP = solved_MSP[table.methods.index(BASE)], solved_MSP[index]
            number = base_SP.shape[1]
            cells += [
                show(estimate((chosen_SP).astype(float), scale=number), digits=1)
                for chosen_SP in (this_SP & ~base_SP, base_SP & ~this_SP)
            ]
        rows.append(cells)
    return markdown(["", *(f"{kind}: {what}" for kind in KINDS for what in ("new", "lost"))], rows)


def distance_table(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Show the KL between base and trained model in both directions, and sampled against exact pass@k."""
    rows = []
    for method in methods:
        of_method = [record for record in records if record.method == method]
        cells = [LABELS[method]]
        for kind in KINDS:
            for name in ("kl_from_base", "kl_to_base"):
                values = [record.exact[name][kind] for record in of_method]
                cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        rows.append(cells)
    header = [f"{kind}: {which}" for kind in KINDS for which in ("KL(base, model)", "KL(model, base)")]
    return markdown(["nats per completion", *header], rows)


def sampled_against_exact(records: Sequence[Record]) -> float:
    """Return the largest difference between sampled and computed pass@1, over models and kinds of problems."""
    return max(
        abs(float(np.mean(counts)) / record.samples - expected_pass_at(record.exact["answer_logprobs"][kind], 1))
        for record in records
        for kind, counts in record.correct.items()
    )


def tables(table: Table, records: Sequence[Record]) -> str:
    never = {kind: (~table.solved_MSP(kind)[table.methods.index(BASE)]).sum(axis=1).tolist() for kind in KINDS}
    parts = [
        f"{len(table.seeds)} seeds ({', '.join(map(str, table.seeds))}), {table.samples} samples of each of "
        f"{' and '.join(f'{table.counts_MSP(kind).shape[2]} {kind}' for kind in KINDS)} problems. "
        "In brackets: 95% bootstrap intervals; seeds and problems are drawn with replacement, independently.\n",
        *(pass_table(table, kind) for kind in (*KINDS, "all")),
        *(
            difference_table(table, kind, other)
            for other in (BASE, "none", "none_slow")
            if other in table.methods
            for kind in KINDS
        ),
        "Problems (of a seed) solved at least once that the base never solves, and solved by the base and never by the "
        f"method. By seed, the base never solves {never['easy']} easy and {never['hard']} hard ones.\n",
        discovery_table(table),
        "How far the models are from their bases on these problems; in brackets, the seeds' range. "
        f"pass@1 as sampled differs from pass@1 as computed from probabilities by at most "
        f"{sampled_against_exact(records):.4f}.\n",
        distance_table(records, [method for method in table.methods if method in METHODS]),
    ]
    return "\n".join(parts)


def plot_pass_at(table: Table, path: Path) -> None:
    """Plot pass@k above, and its difference from the base's below, with intervals."""
    import matplotlib.pyplot as plt

    ks, kinds = powers_of_two(table.samples), (*KINDS, "all")
    figure, axes = plt.subplots(2, len(kinds), figsize=(4 * len(kinds), 6.4), sharex=True, constrained_layout=True)
    for (above, below), kind in zip(axes.T, kinds, strict=True):
        values_MSPK = table.pass_at_MSPK(kind, ks)
        base_SPK = values_MSPK[table.methods.index(BASE)]
        for method, values_SPK in zip(table.methods, values_MSPK, strict=True):
            look = {"color": COLOURS[method], "linewidth": 1.4, "linestyle": "-" if method in METHODS else "--"}
            if method != BASE_AGAIN:
                above.plot(ks, values_SPK.mean(axis=(0, 1)), label=LABELS[method], **look)
            points = [estimate((values_SPK - base_SPK)[..., i]) for i in range(len(ks))]
            below.plot(ks, [p.mean for p in points], **look)
            ends = [p.low for p in points], [p.high for p in points]
            below.fill_between(ks, *ends, color=COLOURS[method], alpha=0.12, linewidth=0)
        above.set_title(f"{kind} problems")
        below.set_xscale("log", base=2)
        below.set_xticks(ks, [str(k) for k in ks])
        below.set_xlabel("k")
    axes[0, 0].set_ylabel("pass@k")
    axes[1, 0].set_ylabel("pass@k minus the base's")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def plot_curves(records: Sequence[Record], path: Path) -> None:
    import matplotlib.pyplot as plt

    names = {"reward": "reward", "entropy": "entropy, nats per token", "kl": "penalty's own divergence, nats per token"}
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), constrained_layout=True)
    for method in METHODS:
        curves = [record.curves for record in records if record.method == method]
        if not curves:
            continue
        for axis, (name, title) in zip(axes, names.items(), strict=True):
            values_SN = np.array([curve[name] for curve in curves])
            axis.plot(
                curves[0]["step"], values_SN.mean(axis=0), color=COLOURS[method], label=LABELS[method], linewidth=1.4
            )
            axis.fill_between(
                curves[0]["step"],
                values_SN.min(axis=0),
                values_SN.max(axis=0),
                color=COLOURS[method],
                alpha=0.1,
                linewidth=0,
            )
            axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and figures of a study's results.")
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results", help="folder of records")
    parser.add_argument("--output", type=Path, default=HERE / "report", help="folder to write")
    arguments = parser.parse_args()
    records = read_records(arguments.results)
    present = {record.method for record in records}
    table = Table.of(records, [name for name in (BASE, BASE_AGAIN, *METHODS) if name in present])
    records = [record for record in records if record.seed in table.seeds]
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = tables(table, records)
    (arguments.output / "report.md").write_text(text)
    print(text)
    import matplotlib

    matplotlib.use("Agg")
    plot_pass_at(table, arguments.output / "pass_at_k.png")
    plot_curves(records, arguments.output / "curves.png")


if __name__ == "__main__":
    main()
