"""The whole configuration: all sections, and the checks that concern several of them."""

from __future__ import annotations

import json

from pydantic import model_validator

from megatron_rapo.builtin_names import is_reference
from megatron_rapo.config.algorithm import AlgorithmConfig
from megatron_rapo.config.batch import BatchConfig
from megatron_rapo.config.checkpoint import CheckpointConfig
from megatron_rapo.config.data import TEMPLATE_SUFFIXES, DataConfig
from megatron_rapo.config.evaluation import EvaluationConfig
from megatron_rapo.config.memory import MemoryConfig
from megatron_rapo.config.model import ModelConfig
from megatron_rapo.config.monitor import MonitorConfig
from megatron_rapo.config.optimizer import OptimizerConfig
from megatron_rapo.config.parallel import ParallelConfig
from megatron_rapo.config.precision import PrecisionConfig
from megatron_rapo.config.reshard import ReshardConfig
from megatron_rapo.config.reward import RewardConfig
from megatron_rapo.config.rollout import RolloutConfig
from megatron_rapo.config.run import RunConfig
from megatron_rapo.config.section import Section


class Config(Section):
    """Everything about a run."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig = RewardConfig()
    batch: BatchConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    parallel: ParallelConfig = ParallelConfig()
    rollout: RolloutConfig = RolloutConfig()
    reshard: ReshardConfig = ReshardConfig()
    memory: MemoryConfig = MemoryConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig | None = None
    run: RunConfig

    @model_validator(mode="after")
    def _check_steps(self) -> Config:
        optimizer_steps = self.run.steps * self.batch.optimizer_steps_per_rollout
        if self.optimizer.warmup_steps > optimizer_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps}: the run has {optimizer_steps} optimizer steps "
                f"and would never reach optimizer.lr; set optimizer.warmup_steps <= {optimizer_steps}."
            )
        if self.optimizer.schedule != "constant" and self.optimizer.warmup_steps == optimizer_steps:
            raise ValueError(
                f"optimizer.schedule={self.optimizer.schedule}: does nothing with optimizer.warmup_steps="
                f"{optimizer_steps}, all optimizer steps of the run; set warmup_steps < {optimizer_steps}, or "
                "schedule=constant."
            )
        if self.checkpoint.every_steps > self.run.steps:
            raise ValueError(
                f"checkpoint.every_steps={self.checkpoint.every_steps}: the run has {self.run.steps} steps; set it "
                f"to at most {self.run.steps}, or to 0."
            )
        if self.checkpoint.hf_every > self.run.steps:
            raise ValueError(
                f"checkpoint.hf_every={self.checkpoint.hf_every}: the run has {self.run.steps} steps; set it to at "
                f"most {self.run.steps}, or to 0."
            )
        if self.evaluation and self.evaluation.every_steps > self.run.steps:
            raise ValueError(
                f"evaluation.every_steps={self.evaluation.every_steps}: the run has {self.run.steps} steps; set it to "
                f"at most {self.run.steps}, or to 0 to evaluate before and after training only."
            )
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Config:
        longest = self.data.max_prompt_tokens + self.rollout.max_completion_tokens
        chunk = 2 * self.parallel.context if self.parallel.context > 1 else 1  # context parallelism aligns sequences
        longest = -(-longest // chunk) * chunk
        if longest > self.batch.tokens_per_microbatch:
            raise ValueError(
                f"batch.tokens_per_microbatch={self.batch.tokens_per_microbatch}: a sequence may have {longest} tokens "
                "(data.max_prompt_tokens + rollout.max_completion_tokens) and would not fit a micro-batch; set "
                f"batch.tokens_per_microbatch >= {longest}."
            )
        return self

    @model_validator(mode="after")
    def _check_shared_prompts(self) -> Config:
        if self.batch.share_prompts and self.parallel.context > 1:
            raise ValueError(
                f"batch.share_prompts=true: with parallel.context={self.parallel.context} every sequence is split over "
                "ranks, and none has a whole prompt; set batch.share_prompts=false or parallel.context=1."
            )
        return self

    @model_validator(mode="after")
    def _check_fp8(self) -> Config:
        if self.rollout.fp8 and self.precision.dtype != "bfloat16":
            raise ValueError(
                f"rollout.fp8=true: vLLM quantises weights in bfloat16, not {self.precision.dtype}; set "
                "precision.dtype=bfloat16, or rollout.fp8=false."
            )
        return self

    @model_validator(mode="after")
    def _check_reference(self) -> Config:
        if self.memory.reference_on_device and self.algorithm.divergence == "none":
            raise ValueError(
                "memory.reference_on_device=true: there is no reference with algorithm.divergence=none; leave it out, "
                "or name a divergence."
            )
        if self.memory.reference_on_device and self.precision.fp8 != "none":
            raise ValueError(
                f"memory.reference_on_device=true: with precision.fp8={self.precision.fp8} layers quantise their "
                "weights once in a pass, which would be the policy's for both; leave it out, or set fp8=none."
            )
        return self

    @model_validator(mode="after")
    def _check_reward(self) -> Config:
        reward, longest = self.reward, self.rollout.max_completion_tokens
        if reward.budget_s >= self.run.timeout_s:
            raise ValueError(
                f"reward.budget_s={reward.budget_s}: while a process judges so long the others give it up, after "
                f"run.timeout_s={self.run.timeout_s}; lower it, or raise run.timeout_s."
            )
        if reward.length and reward.length.full_tokens > longest:
            raise ValueError(
                f"reward.length.full_tokens={reward.length.full_tokens}: no completion is longer than "
                f"rollout.max_completion_tokens={longest}, so none would have the full penalty; set it to at most "
                f"{longest}."
            )
        return self

    @property
    def max_sequence_tokens(self) -> int:
        """Longest sequence that any part of the run makes, tokens."""
        evaluated = self.evaluation.max_completion_tokens if self.evaluation else 0
        return self.data.max_prompt_tokens + max(self.rollout.max_completion_tokens, evaluated)

    @property
    def user_code(self) -> dict[str, str]:
        """Return the settings that name the user's own code, as {setting: MODULE:NAME or FILE.py:NAME}."""
        named = {f"algorithm.{field}": getattr(self.algorithm, field) for field in ("divergence", "advantage", "phi")}
        if not self.data.template.endswith(TEMPLATE_SUFFIXES):  # a file's name may have a colon
            named["data.template"] = self.data.template
        named |= {f"reward.functions.{i}.function": each.function for i, each in enumerate(self.reward.functions)}
        named |= {f"monitor.writers.{i}": name for i, name in enumerate(self.monitor.writers)}
        return {setting: value for setting, value in named.items() if is_reference(value)}

    def to_json(self) -> str:
        """Return the configuration as JSON, with every default."""
        return json.dumps(self.model_dump(mode="json"), indent=2)
