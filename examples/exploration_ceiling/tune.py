r"""Choose the settings of the methods: try each setting, on a seed and problems that the study does not use.

    python -m examples.exploration_ceiling.tune --jobs 2

The learning rate is the one at which GRPO without a penalty gets the highest pass@1 on easy problems; all methods
share it. Each penalty then has the same number of settings to choose from, and takes the one with the highest score
(records.py). What was found is in tuning.json, beside this file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from examples.exploration_ceiling.records import expected_pass_at, score
from examples.exploration_ceiling.study import FULL, ROOT, Children, Study, read_metrics, say, workers
from megatron_rapo.runtime.run_folder import RunFolder

SEED = 100
LEARNING_RATES = ("1e-4", "2e-4", "4e-4")
ALPHAS = ("0.05", "0.2", "0.8")
PHI_MIN = ("0.0", "0.5")
"""Beside 0.9, to show what the level of the reweighting does; nothing is chosen from these."""
PENALTIES = ("forward_kl", "rapo_exact", "reverse_kl", "rapo_paper", "k3")


@dataclass(frozen=True)
class Trial:
    """A method with some of its settings changed."""

    method: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return "-".join([self.method, *(override.split(".", 1)[1] for override in self.overrides)])


def trials() -> list[Trial]:
    """Return the trials, the most informative first."""
    rates = [Trial("none", (f"optimizer.lr={rate}",)) for rate in LEARNING_RATES]
    alphas = [Trial(method, (f"algorithm.alpha={alpha}",)) for alpha in ALPHAS for method in PENALTIES]
    levels = [Trial("rapo_exact", (f"algorithm.phi_min={level}",)) for level in PHI_MIN]
    return [*rates, *alphas, *levels]


def run_trial(study: Study, trial: Trial, folder: Path) -> None:
    """Train, and write the results on the development problems. Does nothing if they exist."""
    result = folder / f"{trial.name}.json"
    if result.exists():
        return
    run = folder / trial.name
    seconds = replace(study, overrides=trial.overrides).train(SEED, trial.method, run)
    figures = measure(study, RunFolder(run).hf, folder / f"{trial.name}.exact.json")
    last = read_metrics(run)[-5:]
    ends = {name: round(sum(row[name] for row in last) / len(last), 4) for name in ("reward/mean", "policy/entropy")}
    row = {"method": trial.method, "set": list(trial.overrides), "train_s": seconds, **figures, **ends}
    result.write_text(json.dumps(row) + "\n")
    say(f"{trial.name}: score {figures['score']}, trained in {seconds:.0f} s")


def measure(study: Study, model: Path, output: Path) -> dict[str, object]:
    """Score and expected pass@k on the development problems."""
    logprobs = study.measure(SEED, model, output)["answer_logprobs"]
    pass_at = {kind: {k: round(expected_pass_at(p, k), 4) for k in (1, 16, 256)} for kind, p in logprobs.items()}
    return {"score": round(score(logprobs), 4), "pass_at": pass_at}


def main() -> int:
    parser = argparse.ArgumentParser(description="Try the settings of every method on the development problems.")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one core each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "exploration_ceiling_tuning")
    parser.add_argument(
        "--only", nargs="+", default=None, metavar="NAME", help="of all trials, those whose name has it"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    study = Study(folder=folder, results=folder / "results", scale=FULL, split="dev", overrides=(), children=Children())
    chosen = [t for t in trials() if arguments.only is None or any(part in t.name for part in arguments.only)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        study.make_base(SEED)
        base = {
            "method": "base",
            "set": [],
            **measure(study, study.seed_folder(SEED) / "base", folder / "base.exact.json"),
        }
        say(f"{len(chosen)} trials; the base's score is {base['score']}")
        with workers(study.children, arguments.jobs) as pool:
            for future in [pool.submit(run_trial, study, trial, folder) for trial in chosen]:
                future.result()
    except KeyboardInterrupt:
        say("stopped; the same command goes on with what is not finished")
        return 130
    done = [folder / f"{trial.name}.json" for trial in trials()]
    rows = [base, *(json.loads(path.read_text()) for path in done if path.exists())]
    (folder / "tuning.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    say(f"{len(rows) - 1} trials in {folder / 'tuning.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
