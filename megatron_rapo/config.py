"""What a run is: every setting, frozen, with its unit, default and limits. `config_file.py` reads them.

Every refusal is a `ConfigError` that names field, value, reason and fix, and comes before anything
expensive starts. What depends on the number of processes, the model or the machine is checked in `checks.py`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from megatron_rapo.errors import InputError

Divergence = Literal[
    "forward_kl",
    "forward_kl_exact",
    "forward_kl_k3",
    "rapo_paper",
    "reverse_kl",
    "reverse_kl_k3",
    "reverse_kl_exact",
    "none",
]
FilePath = Annotated[Path, Field(strict=False)]


class ConfigError(InputError):
    """A setting that cannot work: `section.field=value: reason; fix`."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(_Section):
    """The policy; at step 0 it is the reference too."""

    path: FilePath
    """Hugging Face model folder: config.json, safetensors weights, tokenizer."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """Layer implementation; auto takes Transformer Engine on a GPU where it is installed, torch elsewhere."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none, the attention core only, or whole layers."""


class DataConfig(_Section):
    """The training problems."""

    train: FilePath
    """JSONL or Parquet file with one problem a row."""
    problem_field: str = "problem"
    """Column of the problem's text."""
    answer_field: str = "answer"
    """Column of the reference answer."""
    template: Literal["plain", "qwen-boxed", "chat"] = "qwen-boxed"
    """How a problem becomes a prompt; chat is the tokenizer's own template."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Problems with a longer prompt are left out, counted and reported; none is ever cut."""


class RewardConfig(_Section):
    """What the verifier's verdict is worth."""

    correct: float = 1.0
    """Reward of a completion whose boxed answer is right."""
    wrong: float = 0.0
    """Reward of a completion with a boxed answer that is not right (or not decided in time)."""
    unformatted: float = 0.0
    """Reward of a completion without a closed \\boxed{...}."""
    workers: int = Field(default=1, ge=1)
    """Verifier processes per training process."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Deadline of one answer, seconds; the worker is killed when it passes."""

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        if self.correct <= max(self.wrong, self.unformatted):
            raise ValueError(
                f"reward.correct={self.correct}: a right answer must earn more than any other "
                f"(wrong={self.wrong}, unformatted={self.unformatted}); raise reward.correct."
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest reward that a completion can have."""
        return min(self.wrong, self.unformatted), self.correct

    @property
    def middle(self) -> float:
        """Middle of the range: where what is watched is split into low and high rewards."""
        lowest, highest = self.range
        return (lowest + highest) / 2


class BatchConfig(_Section):
    """Batch sizes, each named by its unit."""

    prompts_per_step: int = Field(ge=1)
    """Prompts sampled from the data set for one rollout, over all processes."""
    completions_per_prompt: int = Field(default=8)
    """Completions of each prompt: the group within which advantages are relative."""
    optimizer_steps_per_rollout: int = Field(default=1, ge=1)
    """Optimizer steps taken on one rollout, each on an equal share of its prompts."""
    refill_rounds: int = Field(default=0, ge=0)
    """Most extra rounds of sampling per step that replace groups whose rewards are all equal; 0 keeps such groups."""
    tokens_per_microbatch: int = Field(default=8192, ge=1)
    """Most tokens packed into one micro-batch of one data-parallel rank (which its context ranks share)."""

    @model_validator(mode="after")
    def _check(self) -> BatchConfig:
        if self.completions_per_prompt < 2:
            raise ValueError(
                f"batch.completions_per_prompt={self.completions_per_prompt}: group-relative advantages need at "
                "least 2 completions of a prompt; set batch.completions_per_prompt >= 2."
            )
        if self.prompts_per_step % self.optimizer_steps_per_rollout:
            raise ValueError(
                f"batch.prompts_per_step={self.prompts_per_step}: not divisible by "
                f"batch.optimizer_steps_per_rollout={self.optimizer_steps_per_rollout}, so the optimizer steps would "
                f"differ in size; set it to a multiple of {self.optimizer_steps_per_rollout}."
            )
        return self

    @property
    def prompts_per_optimizer_step(self) -> int:
        """Groups whose completions one optimizer step trains on, over all processes."""
        return self.prompts_per_step // self.optimizer_steps_per_rollout

    @property
    def completions_per_optimizer_step(self) -> int:
        """Sequences one optimizer step trains on, over all processes."""
        return self.prompts_per_optimizer_step * self.completions_per_prompt


class AlgorithmConfig(_Section):
    """The objective: clipped surrogate - alpha * divergence + beta * entropy (algo/loss.py)."""

    divergence: Divergence = "forward_kl"
    """The penalty, named by its gradient (algo/divergences.py lists them; the audit command measures them)."""
    alpha: float = Field(default=1e-3, ge=0)
    """Coefficient of the divergence; 0 with divergence none."""
    beta: float = Field(default=1e-3, ge=0)
    """Coefficient of the policy's entropy, a bonus."""
    phi: Literal["linear", "power", "sigmoid", "constant"] = "linear"
    """How the reference's exponent rises with the reward, from phi_min to phi_max; constant is phi_max throughout."""
    phi_min: float = Field(default=0.9, ge=0, le=1)
    """Exponent of the reference at the lowest reward; 0 makes it uniform, which drives the policy there."""
    phi_max: float = Field(default=1.0, ge=0, le=1)
    """Exponent of the reference at the highest reward; 1 leaves the reference as it is."""
    phi_exponent: float = Field(default=2.0, gt=0)
    """Of phi = power: phi rises as the reward's place in its range to this exponent."""
    phi_sharpness: float = Field(default=10.0, gt=0)
    """Of phi = sigmoid: its steepness at the middle of the reward's range; a step where it is large."""
    advantage: Literal["mean_std", "mean", "leave_one_out"] = "mean_std"
    """Reward relative to its group (algo/advantages.py): mean_std is GRPO's, mean is Dr. GRPO's."""
    aggregation: Literal["token", "sequence"] = "token"
    """What the objective is a mean over: all tokens alike (DAPO), or sequences, each a mean of its tokens (GRPO)."""
    ratio: Literal["token", "sequence"] = "token"
    """The surrogate's probability ratio: each token's (PPO, GRPO), or its sequence's geometric mean (GSPO)."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The surrogate's probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The surrogate's probability ratio is clipped above at 1 + clip_high."""
    overlong: Literal["keep", "mask"] = "keep"
    """Completions that the length limit cut off: trained on as wrong, or left out of the loss (not of the group)."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Truncation of the detached importance weights: old policy over engine, current policy over engine."""
    log_rho_cap: float = Field(default=10.0, gt=0)
    """Bound of |log rho| before it is exponentiated, nats; hits are counted, their gradient is kept."""

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, settings: Any) -> Any:
        """Without a divergence there is neither coefficient nor reference; a constant phi has one value."""
        if not isinstance(settings, dict):
            return settings
        if settings.get("divergence") == "none":
            settings = {"alpha": 0.0, "phi": "constant", **settings}
        if settings.get("phi") == "constant":
            settings = {"phi_min": settings.get("phi_max", 1.0), **settings}
        return settings

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        if self.phi_min > self.phi_max:
            raise ValueError(
                f"algorithm.phi_min={self.phi_min}: above phi_max={self.phi_max}, but phi must rise with the reward; "
                "set algorithm.phi_min <= algorithm.phi_max."
            )
        if self.divergence == "none" and self.alpha > 0:
            raise ValueError(
                f"algorithm.alpha={self.alpha}: does nothing with algorithm.divergence=none; "
                "set algorithm.alpha=0 or name a divergence."
            )
        if self.divergence == "none" and (self.phi != "constant" or self.phi_max < 1):
            raise ValueError(
                f"algorithm.phi={self.phi}, phi_max={self.phi_max}: do nothing with algorithm.divergence=none; "
                "leave them out or name a divergence."
            )
        if self.phi == "constant" and self.phi_min < self.phi_max:
            raise ValueError(
                f"algorithm.phi_min={self.phi_min}: does nothing with algorithm.phi=constant, which is phi_max="
                f"{self.phi_max} at every reward; leave it out or name another shape of phi."
            )
        if self.divergence != "none" and self.alpha == 0:
            raise ValueError(
                f"algorithm.alpha=0: algorithm.divergence={self.divergence} would be scored and do nothing; "
                "set algorithm.alpha > 0 or algorithm.divergence=none."
            )
        self._refuse_idle("phi_exponent", self.phi != "power", f"algorithm.phi={self.phi}")
        self._refuse_idle("phi_sharpness", self.phi != "sigmoid", f"algorithm.phi={self.phi}")
        without_ratio = self.divergence == "none" or self.divergence.endswith("_exact")
        self._refuse_idle("log_rho_cap", without_ratio, f"algorithm.divergence={self.divergence}")
        return self

    def _refuse_idle(self, field: str, idle: bool, because: str) -> None:
        """A setting that was written down must do something."""
        if idle and getattr(self, field) != type(self).model_fields[field].default:
            raise ValueError(
                f"algorithm.{field}={getattr(self, field)}: does nothing with {because}; leave it out, or change that."
            )


class ParallelConfig(_Section):
    """Megatron's layout of the trainer; data parallelism is what remains of the processes."""

    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel size."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline-parallel size."""
    virtual_pipeline: int = Field(default=1, ge=1)
    """Model chunks per pipeline rank (interleaved schedule); 1 is none."""
    context: int = Field(default=1, ge=1)
    """Context-parallel size: every sequence is split over this many ranks."""
    sequence: bool = False
    """Sequence parallelism: activations between tensor-parallel regions are split over tensor ranks."""

    @model_validator(mode="after")
    def _check(self) -> ParallelConfig:
        if self.sequence and self.tensor == 1:
            raise ValueError(
                "parallel.sequence=true: splits over tensor-parallel ranks and does nothing with parallel.tensor=1; "
                "set parallel.sequence=false or parallel.tensor >= 2."
            )
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ValueError(
                f"parallel.virtual_pipeline={self.virtual_pipeline}: does nothing with parallel.pipeline=1; "
                "set parallel.virtual_pipeline=1 or parallel.pipeline >= 2."
            )
        return self

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model (and of the batch): tensor x pipeline x context."""
        return self.tensor * self.pipeline * self.context


class RolloutConfig(_Section):
    """vLLM, one engine per `tensor` processes."""

    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel size of each engine; the engines are replicas of each other."""
    temperature: float = Field(default=1.0, ge=0.01, le=2)  # vLLM changes or refuses others
    """Sampling temperature; the trainer's log-probabilities use the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; training needs 1."""
    max_completion_tokens: int = Field(default=1024, ge=1)
    """Longest completion, tokens."""
    kv_cache_mib: int = Field(default=1024, ge=1)
    """Key-value cache of each process, MiB."""
    max_concurrent: int = Field(default=256, ge=1)
    """Most completions that one engine decodes at a time."""
    compile: bool = False
    """vLLM's compiled mode (and CUDA graphs): faster decoding, slower start."""
    packed: bool = False
    """CPU only: vLLM's packed copies of the weights. Decoding is some percent faster, resharding packs them anew, and
    the proof covers what was packed instead of what is used."""

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        if self.top_p < 1:
            raise ValueError(
                f"rollout.top_p={self.top_p}: a truncated sampling distribution has no probability for the tokens it "
                "leaves out, which biases the importance ratios; set rollout.top_p=1.0 (evaluation.top_p is free)."
            )
        return self


def _how_often(verify: Any) -> Any:
    if verify in ("every", "first") or (type(verify) is int and verify >= 1):
        return verify
    raise ValueError(
        f"reshard.verify={verify}: not a choice of which reshardings are proven; set it to every, first or a number of "
        "steps from 1 on."
    )


class ReshardConfig(_Section):
    """Moving the trainer's weights into the engine after every step."""

    bucket_mib: int = Field(default=512, ge=1)
    """Most that a process sends and receives at a time, and so the memory that resharding adds to it, MiB. An engine
    that packs its weights adds the parameters that are under way."""
    verify: Annotated[Literal["every", "first"] | int, BeforeValidator(_how_often)] = "every"
    """Which reshardings are proven by a digest of every tensor: all, the first of a start, or one of so many steps."""
    parity_every_steps: int = Field(default=10, ge=0)
    """Steps between comparisons of engine and trainer on fixed prompts; one at the start is always made, 0: no more."""
    max_logprob_gap: float = Field(default=0.1, gt=0)
    """Largest mean |engine - trainer| log-probability of a rollout's tokens, nats; above it the run stops."""


class OptimizerConfig(_Section):
    """Megatron's AdamW and its learning-rate schedule; a step is an optimizer step."""

    lr: float = Field(default=5e-7, gt=0)
    """Learning rate that the warm-up reaches and the schedule falls from."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of a linear or cosine schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up from 0, optimizer steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first-moment decay."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's second-moment decay."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's denominator offset."""
    clip_grad_norm: float = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""
    distributed: bool = False
    """Shard the optimizer's state over data-parallel ranks."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.min_lr > self.lr:
            raise ValueError(
                f"optimizer.min_lr={self.min_lr}: above optimizer.lr={self.lr}; set optimizer.min_lr <= optimizer.lr."
            )
        if self.schedule == "constant" and self.min_lr > 0:
            raise ValueError(
                f"optimizer.min_lr={self.min_lr}: does nothing with optimizer.schedule=constant; "
                "set optimizer.min_lr=0.0 or schedule=linear or cosine."
            )
        return self


class PrecisionConfig(_Section):
    """Number formats of the trainer and the engine."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Weights and activations; gradients and the optimizer's own weights are always float32."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """FP8 format of the linear layers; needs Transformer Engine."""

    @model_validator(mode="after")
    def _check(self) -> PrecisionConfig:
        if self.fp8 != "none" and importlib.util.find_spec("transformer_engine") is None:
            raise ValueError(
                f"precision.fp8={self.fp8}: Transformer Engine is not installed, and Megatron would ignore the "
                "setting silently; install transformer-engine (Hopper or newer GPU) or set precision.fp8=none."
            )
        if self.fp8 != "none" and self.dtype != "bfloat16":
            raise ValueError(
                f"precision.fp8={self.fp8}: needs precision.dtype=bfloat16, not {self.dtype}; set it, or fp8=none."
            )
        return self


class CheckpointConfig(_Section):
    """What is kept of a run."""

    every_steps: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves at the end only."""
    hf_export: bool = True
    """Write the trained policy as a Hugging Face folder when the run ends."""


class MonitorConfig(_Section):
    """What is written down while a run goes on."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    gradient_share_every_steps: int = Field(default=10, ge=0)
    """Steps between measurements of the penalty's share of the gradient, by six passes over a micro-batch; 0: never."""
    sampled_completions: int = Field(default=3, ge=0)
    """Completions written to TensorBoard as text at each step."""

    @model_validator(mode="after")
    def _check(self) -> MonitorConfig:
        if not self.tensorboard and self.sampled_completions and "sampled_completions" in self.model_fields_set:
            raise ValueError(
                f"monitor.sampled_completions={self.sampled_completions}: are written to TensorBoard, which "
                "monitor.tensorboard=false leaves out; set one of the two otherwise."
            )
        return self


class EvaluationConfig(_Section):
    """Held-out problems, before the first and after the last step, and for `evaluate`."""

    data: FilePath
    """JSONL or Parquet file; columns and template as in [data]."""
    samples_per_problem: int = Field(default=16, ge=1)
    """Completions of each problem, n of the unbiased pass@k estimator."""
    k: tuple[int, ...] = Field(default=(1, 4, 16), strict=False)
    """The k of pass@k."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_completion_tokens: int = Field(default=1024, ge=1)
    """Longest completion, tokens."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        if not self.k or min(self.k) < 1 or max(self.k) > self.samples_per_problem:
            raise ValueError(
                f"evaluation.k={list(self.k)}: each k must be between 1 and evaluation.samples_per_problem="
                f"{self.samples_per_problem}; change one of the two."
            )
        if 0 < self.temperature < 0.01:
            raise ValueError(
                f"evaluation.temperature={self.temperature}: vLLM would sample at 0.01; "
                "set evaluation.temperature=0 (greedy) or >= 0.01."
            )
        if self.temperature == 0 and self.samples_per_problem > 1:
            raise ValueError(
                f"evaluation.samples_per_problem={self.samples_per_problem}: greedy samples (temperature=0) are all "
                "the same; set evaluation.samples_per_problem=1 and evaluation.k=[1]."
            )
        return self


class RunConfig(_Section):
    """The run as a whole."""

    folder: FilePath
    """Where everything about the run is written."""
    steps: int = Field(ge=1)
    """Rollouts (each with batch.optimizer_steps_per_rollout optimizer steps)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the data order and of every sampled token."""
    timeout_s: float = Field(default=600.0, gt=0)
    """How long a process waits for the others in a collective before it ends with an error, seconds."""


class Config(_Section):
    """Everything about a run."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig = RewardConfig()
    batch: BatchConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    parallel: ParallelConfig = ParallelConfig()
    rollout: RolloutConfig = RolloutConfig()
    reshard: ReshardConfig = ReshardConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig | None = None
    run: RunConfig

    @model_validator(mode="after")
    def _check(self) -> Config:
        optimizer_steps = self.run.steps * self.batch.optimizer_steps_per_rollout
        if self.optimizer.warmup_steps > optimizer_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps}: the run has {optimizer_steps} optimizer steps "
                f"and would never reach optimizer.lr; set optimizer.warmup_steps <= {optimizer_steps}."
            )
        if self.checkpoint.every_steps > self.run.steps:
            raise ValueError(
                f"checkpoint.every_steps={self.checkpoint.every_steps}: the run has {self.run.steps} steps; set it "
                f"to at most {self.run.steps}, or to 0 to save at the end only."
            )
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

    @property
    def max_sequence_tokens(self) -> int:
        """Longest sequence that any part of the run makes, tokens."""
        evaluated = self.evaluation.max_completion_tokens if self.evaluation else 0
        return self.data.max_prompt_tokens + max(self.rollout.max_completion_tokens, evaluated)

    def to_json(self) -> str:
        """The resolved configuration, every default written out."""
        return json.dumps(self.model_dump(mode="json"), indent=2)
