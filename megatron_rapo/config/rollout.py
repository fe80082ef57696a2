"""The [rollout] section."""

from __future__ import annotations

import json

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_MIB, MAX_SIZE, MAX_TOKENS, Section


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
