"""The `audit` command."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_rapo.algo import DIVERGENCES
from megatron_rapo.audit import report
from megatron_rapo.audit.measure import audit
from megatron_rapo.config import AlgorithmConfig, Config, RewardConfig

AGREES, DISAGREES = 0, 1  # exit status


def audit_config(config: Config, *, as_json: bool) -> int:
    """Say what the loss of `config` optimises; the exit status says whether its name does."""
    torch.set_num_threads(1)  # of tensors this small, threads would only wait for each other
    result = audit(config.algorithm, config.reward, config.rollout.temperature)
    if as_json:
        print(report.to_json([result]))
    else:
        report.show(result)
    return AGREES if result.agrees else DISAGREES


def audit_all(*, as_json: bool, as_markdown: bool, picture: Path | None) -> int:
    """Say what every divergence optimises, at the default settings."""
    torch.set_num_threads(1)
    results = [audit(AlgorithmConfig.model_validate({"divergence": name}), RewardConfig()) for name in DIVERGENCES]
    if as_json:
        print(report.to_json(results))
    elif as_markdown:
        print(report.markdown(results))
    else:
        report.show_all(results)
    if picture:
        report.plot(results, picture)
    return AGREES if all(result.agrees for result in results) else DISAGREES
