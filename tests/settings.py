"""A small valid configuration file, parts of others, and what a refusal says."""

import pytest

from megatron_rapo.config import ConfigError

MINIMAL = """
[model]
path = "models/base"

[data]
train = "train.jsonl"

[batch]
prompts_per_step = 8

[rollout]
max_completion_tokens = 512

[run]
folder = "runs/one"
steps = 3
"""
EVALUATION = ["evaluation.data=held.jsonl"]


def refusal(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as raised:
        call(*arguments, **keywords)
    return str(raised.value)


def functions(*settings):
    """reward.functions with these settings of each."""
    each = [f'{{function="m:f", {"" if "range" in one else "range=[0.0, 1.0], "}{one}}}' for one in settings]
    return f"reward.functions=[{', '.join(each)}]"
