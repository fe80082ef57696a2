"""What the verdicts on sampled completions say before anything is trained on them: shares, what is off, what to do.

A run whose prompts do not fit its verifier, or whose limit cuts nearly everything off, trains without an error and
learns nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_rapo.config import Config
from megatron_rapo.types import Group, Outcome

TOO_MANY = {"no_answer": 0.5, "unparsable": 0.2, "unevaluated": 0.2, "timeout": 0.05}
"""Shares of the verdicts above which they are warned of, by the value of the Outcome."""
TOO_MANY_TRUNCATED = 0.2


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Completions that were sampled with one limit and judged, counted."""

    verdicts: Mapping[str, int]  # Outcome's value -> completions, for every Outcome
    truncated: int
    limit: str  # the setting that cut them off, with its value

    @classmethod
    def of(cls, groups: Sequence[Group], config: Config) -> Judged:
        """Count what a rollout sampled."""
        found = Counter(verdict.outcome for group in groups for verdict in group.verdicts)
        return cls(
            verdicts={outcome.value: found[outcome] for outcome in Outcome},
            truncated=sum(completion.truncated for group in groups for completion in group.completions),
            limit=f"rollout.max_completion_tokens={config.rollout.max_completion_tokens}",
        )

    @property
    def count(self) -> int:
        """Return the number of all verdicts."""
        return sum(self.verdicts.values())

    def share(self, outcome: str) -> float:
        """Return the share with this verdict."""
        return self.verdicts.get(outcome, 0) / self.count

    def __str__(self) -> str:
        """Return all shares in one line."""
        shares = ", ".join(f"{self.share(outcome):.1%} {outcome.replace('_', ' ')}" for outcome in self.verdicts)
        return f"{self.count} completions: {shares}; {self.truncated / self.count:.1%} cut off by {self.limit}"


def warnings(judged: Judged, config: Config) -> dict[str, str]:
    """Return what is off with them, each in one line with the likely remedy, by a name of the kind."""
    found = {}
    if judged.truncated > TOO_MANY_TRUNCATED * judged.count:
        found["truncated"] = (
            f"{judged.truncated / judged.count:.1%} of the completions were cut off by {judged.limit}, mostly before "
            "their answer. Raise it, or see to it that the model stops (rollout.stop)."
        )
    remedies = {
        "no_answer": (
            "have no answer in the form that is judged. If they were not cut off, the prompt does not ask for it "
            f"(data.template={config.data.template}, data.instruction), or the model answers in another form "
            "(reward.answer): choose these to fit each other and the model."
        ),
        "unparsable": (
            "have an answer that is not mathematics. Look at some: the prompt should ask for the bare answer "
            f"(data.template={config.data.template})."
        ),
        "unevaluated": "leave arithmetic to do in their answer. docs/verifier.md says what that counts as.",
        "timeout": (
            f"were not judged in time and count as wrong. Raise reward.timeout_s={config.reward.timeout_s}, "
            f"reward.budget_s={config.reward.budget_s} or reward.workers={config.reward.workers}."
        ),
    }
    for kind, limit in TOO_MANY.items():
        if judged.share(kind) > limit:
            found[kind] = f"{judged.share(kind):.1%} of the completions {remedies[kind]}"
    if not judged.share(Outcome.CORRECT.value):
        found["none_right"] = f"none of {judged.count} completions is right. Look at some before you train on them."
    return found


class SignalWatch:
    """Says what is off with the rollouts of a run, each kind of fault once. `say` shows a message."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._said: set[str] = set()

    def look(self, step: int, groups: Sequence[Group], with_signal: int) -> None:
        """Look at what `step` has sampled, before it is trained on; of `groups` so many have signal."""
        judged = Judged.of(groups, self._config)
        if step == 1:
            self._say(f"first rollout, {judged}; {with_signal} of {len(groups)} groups with different rewards")
        found = warnings(judged, self._config)
        if not with_signal:
            found.pop("none_right", None)  # this says more
            found["no_signal"] = self._no_signal(step, judged.share(Outcome.CORRECT.value))
        for kind, text in found.items():
            if kind not in self._said:
                self._said.add(kind)
                self._say(f"WARNING: {text}")

    def _no_signal(self, step: int, right: float) -> str:
        asked = f"batch.completions_per_prompt={self._config.batch.completions_per_prompt}"
        remedy = "easier problems, after what other warnings name is mended, or raise " + asked
        overlong = self._config.algorithm.overlong
        masked = "" if overlong == "keep" else f"; those that were cut off are masked, algorithm.overlong={overlong}"
        return (
            f"no group of step {step} has different rewards ({right:.1%} of the completions are right{masked}), so all "
            "advantages are 0, and only the penalty and the entropy bonus train. "
            f"Choose {'harder problems' if right > 0.5 else remedy}."
        )
