"""Reference answers that the verifier cannot read as mathematics: it will only ever compare them as text."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_rapo.rewards import VerifierPool
from megatron_rapo.rewards.sizing import MAX_WORKERS, usable_cores
from megatron_rapo.types import Outcome

TIMEOUT_S = 5.0
"""Deadline of one answer, seconds; reward.timeout_s by default."""


def unparsable(answers: Sequence[str]) -> dict[str, Outcome]:
    """Those of `answers` that the verifier cannot parse, or not in time, with what it says of them.

    Each is given as a completion's answer to another problem, so that it is parsed before it is compared.
    """
    doubtful = [answer for answer in dict.fromkeys(answers) if not answer.isdecimal()]
    if not doubtful:
        return {}
    with VerifierPool(min(MAX_WORKERS, usable_cores()), TIMEOUT_S) as pool:
        verdicts = pool.judge_all([(rf"\boxed{{{answer}}}", "0") for answer in doubtful])
    read = (Outcome.CORRECT, Outcome.WRONG)
    return {a: verdict.outcome for a, verdict in zip(doubtful, verdicts, strict=True) if verdict.outcome not in read}
