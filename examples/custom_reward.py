"""Reward functions of one's own. Point the configuration at them:

    [[reward.functions]]
    name = "repetition"
    function = "examples/custom_reward.py:repetition"
    range = [-1.0, 0.0]
    weight = 0.2

    [[reward.functions]]
    name = "says_so"
    function = "examples/custom_reward.py:says_so"
    range = [0.0, 0.1]

A function gets a problem (its other columns in `problem.extra`), a completion and the verifier's verdict, and gives a
number within its range. megatron_rapo/rewards/user_functions.py says where it runs, and megatron_rapo/types.py
what it gets.
"""

from megatron_rapo.types import Completion, Problem, Verdict

WINDOW = 16  # tokens


def repetition(problem: Problem, completion: Completion, verdict: Verdict) -> float:
    """Return minus the share of `WINDOW`-token runs that repeat an earlier run of the completion."""
    tokens = completion.token_ids.tolist()
    runs = [tuple(tokens[i : i + WINDOW]) for i in range(len(tokens) - WINDOW + 1)]
    return len(set(runs)) / len(runs) - 1.0 if runs else 0.0


def says_so(problem: Problem, completion: Completion, verdict: Verdict) -> float:
    """Return a small reward if words announce the answer before its box."""
    return 0.1 if verdict.formatted and "answer is" in completion.text.rpartition("\\boxed")[0][-40:] else 0.0
