"""Summarise the verdicts on sampled completions before training on them, and warn of likely faults with a fix.

If the prompts do not fit the verifier, or the length limit cuts off nearly all completions, a run trains without an
error and learns nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_rapo.config import Config
from megatron_rapo.types import Group, Outcome

TOO_MANY = {"no_answer": 0.5, "unparsable": 0.2, "unevaluated": 0.2, "timeout": 0.05}
"""Share of each verdict above which there is a warning, by the value of its Outcome."""
TOO_MANY_TRUNCATED = 0.2
"""Share of truncated completions above which there is a warning."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Counts of completions by verdict, all sampled with the same length limit."""

    verdicts: Mapping[str, int]  # value of each Outcome -> number of completions
    truncated: int
    limit: str  # the setting of the length limit, with its value

    @classmethod
    def of(cls, groups: Sequence[Group], config: Config) -> Judged:
        """Count the completions of a rollout."""
        counts = Counter(verdict.outcome for group in groups for verdict in group.verdicts)
        return cls(
            verdicts={outcome.value: counts[outcome] for outcome in Outcome},
            truncated=sum(completion.truncated for group in groups for completion in group.completions),
            limit=f"rollout.max_completion_tokens={config.rollout.max_completion_tokens}",
        )

    @property
    def count(self) -> int:
        """Return the number of completions."""
        return sum(self.verdicts.values())

    def share(self, outcome: str) -> float:
        """Return the share of completions with the verdict `outcome` (a value of Outcome)."""
        return self.verdicts.get(outcome, 0) / self.count

    def __str__(self) -> str:
        """Return all shares in one line."""
        shares = ", ".join(f"{self.share(outcome):.1%} {outcome.replace('_', ' ')}" for outcome in self.verdicts)
        return f"{self.count} completions: {shares}; {self.truncated / self.count:.1%} cut off by {self.limit}"


def warnings(judged: Judged, config: Config) -> dict[str, str]:
    """Return one line for each likely fault, with its probable fix, by the name of the fault."""
    found = {}
    if judged.truncated > TOO_MANY_TRUNCATED * judged.count:
        found["truncated"] = (
            f"{judged.truncated / judged.count:.1%} of the completions were cut off by {judged.limit}, mostly before "
            "their answer. Raise this limit, or make the model stop (rollout.stop)."
        )
    remedies = {
        "no_answer": (
            "have no answer in the form that is judged. If they were not cut off, the prompt does not ask for this "
            f"form (data.template={config.data.template}, data.instruction), or the model answers in another form "
            "(reward.answer). Choose settings that fit each other and the model."
        ),
        "unparsable": (
            "have an answer that is not mathematics. Read some; the prompt should ask for the answer alone "
            f"(data.template={config.data.template})."
        ),
        "unevaluated": "leave arithmetic unfinished in their answer. docs/verifier.md says how they are rewarded.",
        "timeout": (
            f"were not judged in time and count as wrong. Raise reward.timeout_s={config.reward.timeout_s}, "
            f"reward.budget_s={config.reward.budget_s} or reward.workers={config.reward.workers}."
        ),
    }
    for kind, limit in TOO_MANY.items():
        if judged.share(kind) > limit:
            found[kind] = f"{judged.share(kind):.1%} of the completions {remedies[kind]}"
    if not judged.share(Outcome.CORRECT.value):
        found["none_right"] = f"none of the {judged.count} completions is right. Read some before you train on them."
    return found


class SignalWatch:
    """Reports likely faults of a run's rollouts, each kind once. `say` shows a message."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._said: set[str] = set()

    def look(self, step: int, groups: Sequence[Group], with_signal: int) -> None:
        """Check the rollout of `step` before it is trained on. `with_signal` of the `groups` have different rewards."""
        judged = Judged.of(groups, self._config)
        if step == 1:
            self._say(f"first rollout, {judged}; {with_signal} of {len(groups)} groups with different rewards")
        found = warnings(judged, self._config)
        if not with_signal:
            found.pop("none_right", None)  # no_signal says more
            found["no_signal"] = self._no_signal(step, judged.share(Outcome.CORRECT.value))
        for kind, text in found.items():
            if kind not in self._said:
                self._said.add(kind)
                self._say(f"WARNING: {text}")

    def _no_signal(self, step: int, right: float) -> str:
        fix = (
            "Choose harder problems."
            if right > 0.5
            else "Fix the causes of other warnings first. Then choose easier problems, or raise "
            f"batch.completions_per_prompt={self._config.batch.completions_per_prompt}."
        )
        overlong = self._config.algorithm.overlong
        masked = "" if overlong == "keep" else f"; those cut off are masked, algorithm.overlong={overlong}"
        return (
            f"no group of step {step} has different rewards ({right:.1%} of the completions are right{masked}). So all "
            f"advantages are 0, and only the penalty and the entropy bonus train. {fix}"
        )
