"""Show audits on the terminal, as a Markdown table, as a picture and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_rapo.algo.divergences import Quantity
from megatron_rapo.audit.measure import REGIMES, TOLERANCE, Audit, TermAudit
from megatron_rapo.monitor import Console
from megatron_rapo.runtime.plotting import new_figure
from megatron_rapo.scoring.objective_registry import divergence_of

QUANTITY_NAMES: dict[Quantity, str] = {
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "half_squared_log_rho": "1/2 E[(log rho)^2]",
}
_IN_FULL: dict[Quantity, str] = {
    "forward_kl": "KL(pihat_ref || pi), the forward KL",
    "reverse_kl": "KL(pi || pihat_ref), the reverse KL",
    "half_squared_log_rho": "1/2 E_pihat[(log rho)^2], which is neither KL",
}


def verdict(audit: Audit) -> str:
    """Return one line: which divergence the loss follows, or that it does not match its name."""
    if audit.named is None or audit.nearest is None:
        return "none: no divergence; nothing keeps the policy near the reference."
    on, off = (audit.terms[regime]["divergence"].bias for regime in REGIMES)
    biases = f"{_percent(on)} on-policy and {_percent(off)} off-policy"
    coupled = ""
    if audit.coupling > 1e-9:
        coupled = f"; with phi by reward, each sampled token at its own, off by up to {audit.coupling:.1%}"
    if audit.agrees:
        kind = divergence_of(audit.divergence)
        corrected = kind.corrected or kind.exact
        caveat = "" if corrected else "; it has no importance weight, so off-policy it goes by its name no longer"
        return (
            f"{audit.divergence}: its gradient is that of {_IN_FULL[audit.named]} (off by {biases}{coupled}){caveat}."
        )
    capped = ", ".join(f"{name} {share:.1%}" for name, share in audit.capped.items() if share)
    because = f"; sampled tokens beyond the caps, off-policy: {capped}" if capped else ""
    direction = "" if audit.nearest == audit.named else f", and nearest to that of {_IN_FULL[audit.nearest]}"
    return (
        f"{audit.divergence} is NOT what it is called: its gradient is off from that of {_IN_FULL[audit.named]} by "
        f"{biases} (at most {TOLERANCE:.0%} goes by the name){direction}{because}."
    )


def show(audit: Audit) -> None:
    """Print everything about one loss."""
    with Console(0) as console:
        columns = ["", "coefficient", "value", "true value", "|gradient|", "largest bias", "noise"]
        for regime, terms in audit.terms.items():
            rows = [[name, *_cells(term)] for name, term in terms.items()]
            console.table(f"terms of the objective, {regime}, per token", columns, rows)
        if audit.named:
            by_quantity = [
                [name, *(f"{audit.terms[regime]['divergence'].cosines[quantity]:.3f}" for regime in REGIMES)]
                for quantity, name in QUANTITY_NAMES.items()
            ]
            console.table("cosine of the divergence's gradient with that of", ["", *REGIMES], by_quantity)
        console.message(
            "bias: |measured - true gradient| / |true gradient|, the largest over random policies. The surrogate is "
            "biased off-policy by clipping and token-level ratios; the verdict is about the divergence."
        )
        console.message(verdict(audit))


def _cells(term: TermAudit) -> list[str]:
    numbers = (term.coefficient, term.value, term.true_value, term.gradient_norm)
    return [*(f"{number:.3g}" for number in numbers), _percent(term.bias), f"{term.noise:.2f}"]


def _percent(share: float) -> str:
    """Format a bias. Show rounding errors as 0."""
    return "0" if share < 1e-9 else f"{share:.1%}"


def to_json(audits: Sequence[Audit]) -> str:
    """Return all audits with their verdicts as a JSON list."""
    return json.dumps([{**asdict(audit), "verdict": verdict(audit)} for audit in audits], indent=2)


_HEADINGS = (
    "divergence",
    "gradient of",
    "value of",
    "cos forward",
    "cos reverse",
    "cos 1/2 E[]",
    "bias on-policy",
    "off-policy",
    "noise",
)


def table(audits: Sequence[Audit]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return headings and rows that show all divergences side by side."""
    rows = []
    for audit in audits:
        if audit.named is None:
            rows.append([audit.divergence, *["-"] * (len(_HEADINGS) - 1)])
            continue
        on, off = (audit.terms[regime]["divergence"] for regime in REGIMES)
        value = divergence_of(audit.divergence).value
        rows.append(
            [
                audit.divergence,
                QUANTITY_NAMES[audit.named] if audit.agrees else f"NOT {QUANTITY_NAMES[audit.named]}",
                QUANTITY_NAMES[value] if value else "-",
                *(f"{on.cosines[quantity]:.3f}" for quantity in QUANTITY_NAMES),
                _percent(on.bias),
                _percent(off.bias),
                f"{on.noise:.2f}",
            ]
        )
    return _HEADINGS, rows


def markdown(audits: Sequence[Audit]) -> str:
    """Return a Markdown table of all divergences for the documentation."""
    headings, rows = table(audits)
    lines = [headings, ["---"] * len(headings), *([f"`{row[0]}`", *row[1:]] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show_all(audits: Sequence[Audit]) -> None:
    """Print all divergences side by side, and what each is."""
    headings, rows = table(audits)
    with Console(0) as console:
        console.table("divergences at default settings, on-policy but for one column", headings, rows)
        for audit in audits:
            console.message(verdict(audit))


def plot(audits: Sequence[Audit], path: Path) -> None:
    """Draw direction, bias and noise of all divergences side by side. Raises InputError."""
    audits = [audit for audit in audits if audit.named]
    places, names = range(len(audits)), [audit.divergence for audit in audits]
    with new_figure(path, 3, figsize=(11, 3.6), sharey=True, width_ratios=(5, 3, 3)) as (figure, panels):
        direction, bias, noise = panels
        for marker, (quantity, label) in zip("o^s", QUANTITY_NAMES.items(), strict=True):
            cosines = [audit.terms["on-policy"]["divergence"].cosines[quantity] for audit in audits]
            direction.plot(cosines, places, marker, label=label, markersize=7, alpha=0.8)
        direction.set(yticks=places, yticklabels=names, title="cosine with the true gradient of")
        direction.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize=8, frameon=False)
        direction.invert_yaxis()
        for marker, regime in zip("o^", REGIMES, strict=True):
            bias.plot(
                [100 * a.terms[regime]["divergence"].bias for a in audits], places, marker, label=regime, alpha=0.8
            )
        bias.set(title="bias against its name, %", xlim=(-1, None))
        bias.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=8, frameon=False)
        noise.plot([audit.terms["on-policy"]["divergence"].noise for audit in audits], places, "o", color="black")
        noise.set(title="noise of one completion\n(its std over the gradient)", xlim=(0, None))
        for axes in (direction, bias, noise):
            axes.grid(axis="both", alpha=0.3)
        figure.tight_layout()
