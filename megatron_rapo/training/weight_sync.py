"""Keep the engine's weights equal to the policy's: reshard, prove and compare them."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_rapo.config import Config
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.monitor import Monitor
from megatron_rapo.reshard.transfer import Report, Resharder
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.runtime.interval import is_due
from megatron_rapo.training.logprob_parity import GapBudget, logprob_parity
from megatron_rapo.types import Prompt


class WeightSync:
    """Keeps one engine's weights equal to one policy's. Their version is the number of trained steps.

    The first sync after a start is always proven, and compared on fixed prompts (the first of `prompts`). [reshard]
    says how often later ones are.
    """

    def __init__(
        self,
        config: Config,
        *,
        policy: Policy,
        resharder: Resharder,
        sampler: Sampler,
        monitor: Monitor,
        prompts: Sequence[Prompt],
    ) -> None:
        self._config, self._policy, self._resharder = config, policy, resharder
        self._sampler, self._monitor, self._prompts = sampler, monitor, prompts
        self._budget = GapBudget(config.precision, monitor.message)
        self._scalars: dict[str, float] = {}

    def run(self, step: int) -> dict[str, float]:
        """Give the engine the weights of `step`. Returns the scalars of its resharding. Collective.

        Raises ReshardError if the engine holds something else, RuntimeError if it computes something else.
        """
        settings, version = self._config.reshard, self._sampler.engine.weight_version
        if version != step:
            first = version is None
            report = self._reshard(step, prove=first or _is_proven(settings.verify, step))
            compared = first or is_due(step, settings.parity_every_steps)
            self._scalars = {**report.scalars(), **(self._parity(step) if compared else {})}
            if first:
                self._monitor.message(
                    "engine and trainer differ on fixed prompts by {reshard/parity_mean:.2g} nats per token on "
                    "average, {reshard/parity_max:.2g} at most".format_map(self._scalars)
                )
        return self._scalars

    def _reshard(self, step: int, *, prove: bool) -> Report:
        with self._monitor.phase("reshard"), self._sampler.engine.updating(step) as weights:
            return self._resharder.run(weights, version=step, prove=prove)

    def _parity(self, step: int) -> dict[str, float]:
        with self._monitor.phase("parity"):
            parity = logprob_parity(self._policy, self._sampler, self._prompts, self._config)
        self._budget.check(parity["reshard/parity_mean"], step=step)
        return parity


def _is_proven(how_often: str | int, step: int) -> bool:
    """Return whether the resharding at `step` is proven, by [reshard] verify. (The first after a start always is.)"""
    return how_often == "every" if isinstance(how_often, str) else is_due(step, how_often)
