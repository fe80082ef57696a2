"""Sections on what a run makes of its devices: layouts, number formats, the engine, resharding."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_rapo.config.section import MAX_MIB, MAX_SIZE, MAX_STEPS, MAX_TOKENS, MAX_VALUE, Section


class ParallelConfig(Section):
    """Lay out the trainer over processes. Data parallelism takes the factor of the processes that remains."""

    tensor: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Split each layer over this many processes (tensor parallelism).

    Unit: processes.
    Limits: tensor times pipeline times context must divide the number of processes.
    Also called: TP, tensor_model_parallel_size.
    """
    pipeline: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Split the layers over this many pipeline stages (pipeline parallelism).

    Unit: processes.
    Limits: parallel.pipeline times parallel.virtual_pipeline is at most the number of layers.
    Also called: PP, pipeline_model_parallel_size.
    """
    virtual_pipeline: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Give each pipeline rank this many model chunks (interleaved schedule). 1: no interleaving.

    Unit: model chunks.
    Needs: parallel.pipeline of at least 2 if above 1.
    Also called: VPP, interleaved 1F1B.
    """
    context: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Split every sequence over this many processes (context parallelism).

    Unit: processes.
    Excludes: batch.share_prompts if above 1.
    Also called: CP, context_parallel_size.
    """
    sequence: bool = False
    """Split the activations between tensor-parallel regions over the tensor-parallel processes (sequence parallelism).

    Needs: parallel.tensor of at least 2.
    Also called: SP.
    """

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
    """Choose the number formats of the trainer, and how far trainer and engine may differ."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Keep weights and activations in this format. Gradients and the optimizer's own weights are always float32.

    Needs: bfloat16 for precision.fp8, rollout.fp8 and model.layers=transformer_engine.
    """
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """Compute the linears of the layers in this FP8 format; hybrid has e5m2 gradients. The output layer,
    log-probabilities, entropy and KL stay in high precision.

    Needs: precision.dtype=bfloat16, Transformer Engine, and a GPU that supports precision.fp8_recipe.
    Excludes: memory.reference_on_device; model.layers=torch.
    """
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "tensorwise"
    """Choose where FP8's scales come from. delayed: the largest magnitudes of earlier steps. tensorwise: those of the
    tensor itself. blockwise and mxfp8: those of its blocks.

    Needs: precision.fp8 other than none; a GPU of compute capability 8.9 (delayed, tensorwise), 9.0 (blockwise) or 10.0
    (mxfp8).
    """
    bf16_layers_at_start: int = Field(default=0, ge=0, le=MAX_SIZE)
    """Keep this many of the first layers in bfloat16 under FP8.

    Unit: layers.
    Limits: not above the layers of a pipeline stage.
    Needs: precision.fp8 other than none.
    Excludes: precision.fp8_recipe=delayed.
    """
    bf16_layers_at_end: int = Field(default=0, ge=0, le=MAX_SIZE)
    """Keep this many of the last layers in bfloat16 under FP8.

    Unit: layers.
    Limits: not above the layers of a pipeline stage.
    Needs: precision.fp8 other than none.
    Excludes: precision.fp8_recipe=delayed.
    """
    bf16_reference: bool = False
    """Score the reference in bfloat16 although the policy is in FP8. A KL that should be 0 at the start then has some
    noise.

    Needs: precision.fp8 other than none.
    """
    max_logprob_gap: float = Field(default=0.1, gt=0, le=MAX_VALUE)
    """Allow at most this mean absolute difference between the log-probabilities of the engine and the trainer on the
    tokens of a rollout.

    Unit: nats.
    Also called: training-inference mismatch.
    """
    on_logprob_gap: Literal["stop", "warn"] = "stop"
    """Choose what happens above precision.max_logprob_gap: end the run (stop), or print a warning and go on (warn)."""

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
    """Set up vLLM, with one engine per `tensor` processes, and how it samples completions for training."""

    tensor: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Split each engine over this many processes (tensor parallelism). The engines are replicas of each other.

    Unit: processes.
    Limits: must divide the number of processes.
    """
    temperature: float = Field(default=1.0, ge=0.01, le=2)  # vLLM changes or refuses others
    """Sample training completions at this temperature. The trainer's log-probabilities use the same.

    Unit: none.
    """
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this value (nucleus sampling). Training needs
    all tokens; only evaluation.top_p may be lower.

    Unit: probability.
    Limits: only 1.
    """
    max_completion_tokens: int = Field(default=1024, ge=1, le=MAX_TOKENS)
    """Stop a completion at this length. algorithm.overlong says what happens to those that are cut off.

    Unit: tokens.
    Limits: the longest sequence is not above the positions of the model.
    Needs: batch.tokens_per_microbatch of at least this plus data.max_prompt_tokens.
    Also called: max_new_tokens, max_tokens, response length.
    """
    stop: tuple[str, ...] | None = Field(default=None, strict=False)
    """End a completion at any of these strings, instead of those of data.template. The text is cut before the string.

    Default: the stop strings of the template.
    Limits: no empty string.
    """
    stop_token_ids: tuple[int, ...] = Field(default=(), strict=False)
    """End a completion at any of these token ids, besides the model's own end-of-sequence tokens.

    Unit: token ids.
    Limits: each from 0 to the largest id of the tokenizer.
    """
    kv_cache_mib: int = Field(default=1024, ge=1, le=MAX_MIB)
    """Reserve this much memory for the key-value cache of each process.

    Unit: MiB.
    Limits: room for one sequence of the longest length at least; not above the memory of the process.
    Also called: KV cache size.
    """
    max_concurrent: int = Field(default=256, ge=1, le=MAX_SIZE)
    """Decode at most this many completions at a time in one engine.

    Unit: completions.
    Also called: max_num_seqs.
    """
    compile: bool = False
    """Use vLLM's compiled mode and CUDA graphs: faster decoding, slower start.

    Also called: enforce_eager (its opposite).
    """
    fp8: bool = False
    """Quantise the engine's linears to FP8 at every resharding (vLLM's fp8_per_channel: weights by output channel,
    activations by token). This halves memory and speeds up decoding. Tokens then come from a slightly different policy,
    which importance weights correct. The output layer stays in precision.dtype.

    Needs: precision.dtype=bfloat16; on a GPU, compute capability 8.9.
    """
    packed: bool = False
    """Use vLLM's packed copies of the weights on a CPU. Decoding is faster (benchmarks/bench_rollout.py). Each
    resharding packs the weights anew, and the proof covers the weights that were packed, not the packed copies.

    Needs: a CPU.
    """

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
    """Control how the trainer's weights move into the engine after every step."""

    bucket_mib: int = Field(default=512, ge=1, le=MAX_MIB)
    """Send and receive at most this much at a time in each process. Resharding adds this much memory to a process; an
    engine that packs its weights adds the parameters that are under way.

    Unit: MiB.
    """
    verify: Annotated[Literal["every", "first"] | int, BeforeValidator(_how_often)] = "every"
    """Choose which reshardings are proven by a digest of every tensor: every one, the first one after a start, or one
    in this many steps.

    Unit: steps.
    Limits: every, first, or a number from 1 on.
    Also called: weight sync check.
    """
    parity_every_steps: int = Field(default=10, ge=0, le=MAX_STEPS)
    """Compare engine and trainer on fixed prompts after every so many steps. One comparison at the start is always
    made. 0: no more.

    Unit: steps.
    """


class MemoryConfig(Section):
    """Trade GPU memory for time. Without a GPU these settings are refused."""

    engine_sleep: bool = False
    """Release the engine's weights and key-value cache while the trainer scores and trains (vLLM's sleep mode).

    Needs: a GPU.
    Also called: sleep mode, free cache engine.
    """
    reference_on_device: bool = False
    """Keep the reference's weights on the GPU too. One pass then scores with them and with the policy's: no exchange
    with host memory and one pipeline bubble instead of two. It takes as much memory again as the weights.

    Needs: a GPU, and an algorithm.divergence other than none.
    Excludes: precision.fp8 other than none.
    """
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory and release the gradients, except while training and saving.

    Needs: a GPU.
    Also called: CPU offload, optimizer offload.
    """
