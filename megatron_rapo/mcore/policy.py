"""Hold the policy under training (model, optimizer and reference), with the operations of a training step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from megatron_rapo.config import Config
from megatron_rapo.mcore.diagnostics import gap_parts, log_rho_quantiles, logprob_gap
from megatron_rapo.mcore.engine_fp8_rounding import linears_in_fp8
from megatron_rapo.mcore.forward_backward import (
    POLICY,
    ExactReference,
    ForwardBackward,
    LossFunction,
    Scorer,
    Trained,
    sequence_mean,
)
from megatron_rapo.mcore.fp8_settings import fp8_token_multiple, without_fp8
from megatron_rapo.mcore.model import (
    attention_sequences,
    build_chunks,
    head_weight,
    load_weights,
    named_parameters,
    norm_names,
    transformer_config,
)
from megatron_rapo.mcore.offload import TrainingState
from megatron_rapo.mcore.optimizer import build_optimizer, wrap
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.mcore.reference import Reference
from megatron_rapo.mcore.token_logprobs import Place, TokenLogProbs, token_log_probs
from megatron_rapo.models import ModelShape
from megatron_rapo.reshard.gather import ShardedWeights
from megatron_rapo.runtime.devices import Backend
from megatron_rapo.scoring.objective_registry import divergence_of
from megatron_rapo.scoring.packing import PackedBatch, assign, families, pack, packed_length, split_context
from megatron_rapo.types import TrainingSequence


def microbatches(
    config: Config, shape: ModelShape, sequences: Sequence[TrainingSequence], *, num_ranks: int
) -> list[list[tuple[list[int], int]]]:
    """Assign sequences: [data-parallel rank][micro-batch] -> indices of sequences, and the padded number of tokens."""
    layout, most_tokens, share = config.parallel, config.batch.tokens_per_microbatch, config.batch.share_prompts
    units = [[i] for i in range(len(sequences))]
    if share:
        of_rank = sum(len(s.token_ids) for s in sequences) // num_ranks
        units = families(sequences, most_tokens=min(most_tokens, of_rank) // 4)

    def length(indices: Sequence[int]) -> int:
        return packed_length([sequences[i] for i in indices], context=layout.context, share_prompts=share)

    def cost(indices: Sequence[int]) -> float:
        shared = (len(indices) - 1) * (sequences[indices[0]].prompt_length - 1)
        return sum(shape.sequence_cost(length([i])) for i in indices) - shared

    shares = assign(
        [length(unit) for unit in units],
        [cost(unit) for unit in units],
        num_ranks=num_ranks,
        max_tokens=most_tokens,
        multiple_of=layout.pipeline if layout.virtual_pipeline > 1 else 1,
    )
    step = _tokens_multiple(config)
    found = [[[i for unit in chosen for i in units[unit]] for chosen in mine] for mine in shares]
    return [[(indices, max(1, -(-length(indices) // step)) * step) for indices in mine] for mine in found]


def _tokens_multiple(config: Config) -> int:
    """Return the divisor of a micro-batch's padded tokens: every split must be even, and FP8 needs 16 or 32."""
    layout = config.parallel
    split = (2 * layout.context if layout.context > 1 else 1) * (layout.tensor if layout.sequence else 1)
    if config.precision.fp8 == "none":
        return split
    return math.lcm(split, fp8_token_multiple(config.precision) * layout.context * layout.tensor)


class Policy:
    """A Megatron model on this rank's part of the layout. Every method is collective over the world.

    `parameters` are this rank's, by the parameter map's names; `norms` says how the map names its norms. Methods that
    compute gradients work only within `training_state.in_place()`.
    """

    def __init__(self, config: Config, shape: ModelShape, parallel: Parallel) -> None:
        self.config, self.shape, self.parallel = config, shape, parallel
        self.backend = backend = Backend.resolve(config)
        self._megatron = megatron = transformer_config(config, shape, backend)
        self.norms = norms = norm_names(backend)
        self.chunks = build_chunks(config, shape, backend, megatron, parallel)
        load_weights(self.chunks, config.model.path, shape, norms, parallel)
        self.parameters = parameters = dict(named_parameters(self.chunks))
        divergence = divergence_of(config.algorithm.divergence)
        self.reference = None
        if divergence.reference:
            self.reference = Reference(list(parameters.values()), on_device=config.memory.reference_on_device)
        head = head_weight(self.chunks)
        exact = None
        if divergence.exact and head is not None:
            exact = ExactReference(head_weight=head.detach().clone(), direction=divergence.exact)
        self.wrapped = wrap(config, megatron, self.chunks)
        self.optimizer, self.scheduler = build_optimizer(config, megatron, self.wrapped)
        self.training_state = TrainingState(self.wrapped, self.optimizer, offload=config.memory.offload_optimizer)
        self._weights = ShardedWeights(
            parameters, shape, norms, tensor_group=parallel.tensor_group, pipeline_group=parallel.pipeline_group
        )
        self._passes = ForwardBackward(
            chunks=self.wrapped,
            sequences=attention_sequences(config, shape, backend),
            head_weight=head,
            parallel=parallel,
            vocab_size=shape.vocab_size,
            temperature=config.rollout.temperature,
            deterministic=config.run.deterministic,
            exact=exact,
        )

    @property
    def checkpoint_format(self) -> dict[str, Any]:
        """Return the settings that a checkpoint's optimizer state depends on, by name."""
        config = self.config
        return {"optimizer.distributed": config.optimizer.distributed, "precision.dtype": config.precision.dtype}

    def pack(self, sequences: Sequence[TrainingSequence]) -> list[PackedBatch]:
        """Pack this rank's micro-batches of one optimizer step over all `sequences`, on its device."""
        ranks, context = self.parallel.data_group, self.parallel.context_group
        shares = microbatches(self.config, self.shape, sequences, num_ranks=ranks.size())
        batches = []
        for indices, num_tokens in shares[ranks.rank()]:
            whole = pack(
                [sequences[i] for i in indices],
                indices,
                context=context.size(),
                num_tokens=num_tokens,
                share_prompts=self.config.batch.share_prompts,
            )
            batches.append(split_context(whole, rank=context.rank(), context=context.size()).to(self.parallel.device))
        return batches

    def score(self, steps: Sequence[Sequence[PackedBatch]]) -> list[list[PackedBatch]]:
        """Score the micro-batches of each optimizer step by policy and reference, in one pass if possible."""
        if self.reference is None or not self.reference.at_hand:
            return self.score_reference(self.score_policy(steps))
        both = POLICY, Scorer(is_reference=True, weights=self.reference.in_place)
        return self._score(steps, *both)

    def score_policy(self, steps: Sequence[Sequence[PackedBatch]]) -> list[list[PackedBatch]]:
        """Score the micro-batches of each optimizer step by the policy: sets old_logp_T on the last pipeline stage."""
        return self._score(steps, POLICY)

    def score_reference(self, steps: Sequence[Sequence[PackedBatch]]) -> list[list[PackedBatch]]:
        """Add ref_logp_T (and ref_hidden_RD). Returns the steps unchanged if the divergence has no reference."""
        if self.reference is None:
            return [list(batches) for batches in steps]
        plain = without_fp8(self._megatron) if self.config.precision.bf16_reference else nullcontext()
        with self.reference.in_place(), plain:
            return self._score(steps, Scorer(is_reference=True))

    def _score(self, steps: Sequence[Sequence[PackedBatch]], *scorers: Scorer) -> list[list[PackedBatch]]:
        """Score all steps in one pass through the pipeline."""
        for chunk in self.wrapped:
            chunk.eval()
        scored = iter(self._passes.score([batch for batches in steps for batch in batches], *scorers))
        return [[next(scored) for _ in batches] for batches in steps]

    def logprob_gap(self, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """Return the log-probability gap between engine and trainer of scored `batches`, by scalar names."""
        return logprob_gap(batches, self.parallel)

    def diagnostics(self, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """Return the log-probability gap, and the quantiles of log rho where there is a reference."""
        gap = self.logprob_gap(batches)
        if self.reference is None:
            return gap
        return {**gap, **log_rho_quantiles(batches, self.parallel, middle_reward=self.config.reward.middle)}

    def token_log_probs(
        self, steps: Sequence[Sequence[PackedBatch]], chosen: Mapping[Place, TrainingSequence]
    ) -> dict[Place, TokenLogProbs]:
        """Return log-probabilities of the `chosen` completions in scored `steps`. Empty except on the first process."""
        return token_log_probs(steps, chosen, self.parallel, with_reference=self.reference is not None)

    def gap_parts(self, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """Split the log-probability gap of scored `batches` into the trainer's FP8, the engine's FP8 and the rest.

        Keys are names of monitor/scalars.py. Empty if neither uses FP8. Takes one or two scoring passes.
        """
        in_engine = self.config.rollout.fp8
        if self.config.precision.fp8 == "none" and not in_engine:
            return {}
        with without_fp8(self._megatron):
            [plain] = [rounded] = self._score([batches], POLICY)
            if in_engine:
                with linears_in_fp8(self.parameters, self.parallel.tensor_group):
                    [rounded] = self._score([batches], POLICY)
        return gap_parts(batches, plain, rounded, self.parallel)

    def sequence_mean(self, values_T: Tensor, batch: PackedBatch) -> Tensor:
        """Return at each token the mean of `values_T` over the selected tokens of its sequence, [T]."""
        return sequence_mean(values_T, batch, self.parallel.context_group)

    def gradient_norm(self, batches: Sequence[PackedBatch], loss: LossFunction) -> float:
        """Return the global L2 norm of the gradient of `loss`. Updates nothing and leaves no gradient behind."""
        self._accumulate(batches, loss)
        norm = self._gradient_norm()
        self._zero_gradients()
        return norm

    def _gradient_norm(self) -> float:
        self.optimizer.prepare_grads()
        return float(self.optimizer.get_grad_norm())

    def train_step(self, batches: Sequence[PackedBatch], loss: LossFunction) -> Trained:
        """Run one optimizer step. Its means include `grad_norm` (before clipping), `lr` and `skipped`.

        A micro-batch without old_logp_T uses the current policy as its old policy. If loss or gradient is not finite,
        the step is skipped: weights and schedule stay as they are, and `skipped` is 1 instead of 0.
        """
        means, trained = self._accumulate(batches, loss)
        norm = self._gradient_norm()
        finite = math.isfinite(means["loss"]) and math.isfinite(norm)
        if finite:
            self.scheduler.step(increment=1)  # before the update, or a warm-up's first step would have rate 0
            with record_function("optimizer"):
                self.optimizer.step()
        else:
            self._zero_gradients()
        means |= {"grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"], "skipped": float(not finite)}
        return Trained(means, trained)

    def _accumulate(self, batches: Sequence[PackedBatch], loss: LossFunction) -> Trained:
        self.training_state.require()
        for chunk in self.wrapped:
            chunk.train()
        self._zero_gradients()
        return self._passes.forward_backward(batches, loss)

    def _zero_gradients(self) -> None:
        for chunk in self.wrapped:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def hf_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the current weights as whole Hugging Face tensors, on every rank. Every rank must consume them all."""
        with torch.no_grad():
            yield from self._weights.hf_tensors()
