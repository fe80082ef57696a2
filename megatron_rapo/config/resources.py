"""Sections on what a run makes of its devices: layouts, number formats, the engine, resharding."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_rapo.config.section import MAX_MIB, MAX_SIZE, MAX_STEPS, MAX_TOKENS, MAX_VALUE, Section


class ParallelConfig(Section):
    """Megatron's layout of the trainer; data parallelism is what remains of the processes."""

    tensor: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Tensor-parallel size."""
    pipeline: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Pipeline-parallel size."""
    virtual_pipeline: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Model chunks per pipeline rank (interleaved schedule); 1 is none."""
    context: int = Field(default=1, ge=1, le=MAX_SIZE)
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


LEAST_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
"""Of a GPU, for each of FP8's recipes: Ada, Hopper, Blackwell."""


_LEFT_OUT = ("bf16_layers_at_start", "bf16_layers_at_end")
_OF_FP8 = ("fp8_recipe", *_LEFT_OUT, "bf16_reference")


class PrecisionConfig(Section):
    """Number formats of the trainer and the engine."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Weights and activations; gradients and the optimizer's own weights are always float32."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """FP8 format of the layers' linears: hybrid has e5m2 gradients. Needs Transformer Engine and a GPU that has it. The
    output layer, log-probabilities, entropy and KL stay in high precision."""
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "tensorwise"
    """Where FP8's scales come from: the largest magnitudes of earlier steps, of the tensor itself, or of its blocks."""
    bf16_layers_at_start: int = Field(default=0, ge=0, le=MAX_SIZE)
    """How many of the first layers stay in bfloat16 under FP8."""
    bf16_layers_at_end: int = Field(default=0, ge=0, le=MAX_SIZE)
    """How many of the last layers stay in bfloat16 under FP8."""
    bf16_reference: bool = False
    """The reference is scored in bfloat16 although the policy is in FP8; a KL of 0 at the start has then some noise."""
    max_logprob_gap: float = Field(default=0.1, gt=0, le=MAX_VALUE)
    """Largest mean |engine - trainer| log-probability of a rollout's tokens, nats."""
    on_logprob_gap: Literal["stop", "warn"] = "stop"
    """What is done above max_logprob_gap."""

    @model_validator(mode="after")
    def _check(self) -> PrecisionConfig:
        if self.fp8 != "none" and self.dtype != "bfloat16":
            raise ValueError(
                f"precision.fp8={self.fp8}: needs precision.dtype=bfloat16, not {self.dtype}; set it, or fp8=none."
            )
        for name in _OF_FP8:
            value = getattr(self, name)
            if self.fp8 == "none" and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"precision.{name}={_written(value)}: does nothing with precision.fp8=none; set fp8=hybrid, or "
                    "leave it out."
                )
            if self.fp8_recipe == "delayed" and name in _LEFT_OUT and value:
                raise ValueError(
                    f"precision.{name}={value}: delayed scaling cannot leave layers out (its magnitudes are reduced "
                    "over all of them at once); set another precision.fp8_recipe, or leave it out."
                )
        return self


class RolloutConfig(Section):
    """vLLM, one engine per `tensor` processes."""

    tensor: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Tensor-parallel size of each engine; the engines are replicas of each other."""
    temperature: float = Field(default=1.0, ge=0.01, le=2)  # vLLM changes or refuses others
    """Sampling temperature; the trainer's log-probabilities use the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; training needs 1."""
    max_completion_tokens: int = Field(default=1024, ge=1, le=MAX_TOKENS)
    """Longest completion, tokens."""
    stop: tuple[str, ...] | None = Field(default=None, strict=False)
    """Strings at which a completion stops, instead of those of data.template; its text is cut before the string."""
    stop_token_ids: tuple[int, ...] = Field(default=(), strict=False)
    """Token ids at which a completion stops, besides the model's own end-of-sequence tokens."""
    kv_cache_mib: int = Field(default=1024, ge=1, le=MAX_MIB)
    """Key-value cache of each process, MiB."""
    max_concurrent: int = Field(default=256, ge=1, le=MAX_SIZE)
    """Most completions that one engine decodes at a time."""
    compile: bool = False
    """vLLM's compiled mode (and CUDA graphs): faster decoding, slower start."""
    fp8: bool = False
    """The engine's linears in FP8 (vLLM's fp8_per_channel: weights by output channel, activations by token), quantised
    anew at every resharding: half the memory, faster decoding, and tokens from a slightly other policy than the
    trainer's, which importance weights correct. The output layer stays in precision.dtype."""
    packed: bool = False
    """CPU only: vLLM's packed copies of the weights. Decoding is faster (benchmarks/bench_rollout.py),
    resharding packs them anew, and the proof covers what was packed instead of what is used."""

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        if self.top_p < 1:
            raise ValueError(
                f"rollout.top_p={self.top_p}: a truncated sampling distribution has no probability for the tokens it "
                "leaves out, which biases the importance ratios; set rollout.top_p=1.0 (evaluation.top_p is free)."
            )
        if "" in (self.stop or ()):
            raise ValueError(
                f"rollout.stop={json.dumps(self.stop)}: has an empty string, at which every completion would stop; "
                "take it out."
            )
        if bad := [token_id for token_id in self.stop_token_ids if token_id < 0]:
            raise ValueError(
                f"rollout.stop_token_ids={list(self.stop_token_ids)}: {bad[0]} is no token id; ids start at 0."
            )
        return self


def _written(value: Any) -> str:
    """As a setting's value is written in a file."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _how_often(verify: Any) -> Any:
    if verify in ("every", "first") or (type(verify) is int and verify >= 1):
        return verify
    raise ValueError(
        f"reshard.verify={verify}: not a choice of which reshardings are proven; set it to every, first or a number of "
        "steps from 1 on."
    )


class ReshardConfig(Section):
    """Moving the trainer's weights into the engine after every step."""

    bucket_mib: int = Field(default=512, ge=1, le=MAX_MIB)
    """Most that a process sends and receives at a time, and so the memory that resharding adds to it, MiB. An engine
    that packs its weights adds the parameters that are under way."""
    verify: Annotated[Literal["every", "first"] | int, BeforeValidator(_how_often)] = "every"
    """Which reshardings are proven by a digest of every tensor: all, the first of a start, or one of so many steps."""
    parity_every_steps: int = Field(default=10, ge=0, le=MAX_STEPS)
    """Steps between comparisons of engine and trainer on fixed prompts; one at the start is always made, 0: no more."""


class MemoryConfig(Section):
    """What a GPU's memory holds beside what is under way: less, which is moved or rebuilt instead, or more."""

    engine_sleep: bool = False
    """The engine's weights and key-value cache are released while the trainer scores and trains (vLLM's sleep mode)."""
    reference_on_device: bool = False
    """The reference's weights stay on the GPU too, where one pass scores with them and the policy's: no exchange with
    host memory, one pipeline bubble instead of two, and as much memory again as the weights take."""
    offload_optimizer: bool = False
    """The optimizer's state is in host memory, and the gradients are released, but while training and saving."""
