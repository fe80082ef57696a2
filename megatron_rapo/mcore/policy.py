"""The policy under training: model, optimizer and reference, behind the operations that a training step needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megatron_rapo.config import Config
from megatron_rapo.hf import ModelShape
from megatron_rapo.mcore.model import (
    build_chunks,
    head_weight,
    load_weights,
    named_parameters,
    norm_names,
    transformer_config,
)
from megatron_rapo.mcore.optimizer import build_optimizer, wrap
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.mcore.reference import Reference
from megatron_rapo.mcore.step import LossFunction, Passes, gather_over_data, total
from megatron_rapo.packing import PackedBatch, aligned, assign, pack, split_context
from megatron_rapo.reshard.transfer import ShardedWeights
from megatron_rapo.types import TrainingSequence


class Policy:
    """A Megatron model on this rank's part of the layout. Every method is collective over the world."""

    def __init__(self, config: Config, shape: ModelShape, parallel: Parallel) -> None:
        self.config, self.parallel = config, parallel
        megatron, norms = transformer_config(config, shape), norm_names(config)
        self.chunks = build_chunks(config, shape, megatron, parallel)
        load_weights(self.chunks, config.model.path, shape, norms, parallel)
        parameters = dict(named_parameters(self.chunks))
        self.reference = Reference(list(parameters.values())) if config.algorithm.divergence != "none" else None
        self.wrapped = wrap(config, megatron, self.chunks)
        self.optimizer, self.scheduler = build_optimizer(config, megatron, self.wrapped)
        self._weights = ShardedWeights(
            parameters, shape, norms, tensor_group=parallel.tensor_group, pipeline_group=parallel.pipeline_group
        )
        self._passes = Passes(
            chunks=self.wrapped,
            head_weight=head_weight(self.chunks),
            parallel=parallel,
            vocab_size=shape.vocab_size,
            temperature=config.rollout.temperature,
        )

    @property
    def checkpoint_format(self) -> dict[str, Any]:
        """Settings that a checkpoint's optimizer state depends on, by their names."""
        config = self.config
        return {"optimizer.distributed": config.optimizer.distributed, "precision.dtype": config.precision.dtype}

    def pack(self, sequences: Sequence[TrainingSequence]) -> list[PackedBatch]:
        """This rank's micro-batches of one optimizer step over all `sequences`, on its device."""
        layout, ranks, context = self.config.parallel, self.parallel.data_group, self.parallel.context_group
        lengths = [aligned(len(s.token_ids), layout.context) for s in sequences]
        mine = assign(
            lengths,
            num_ranks=ranks.size(),
            max_tokens=self.config.batch.tokens_per_microbatch,
            multiple_of=layout.pipeline if layout.virtual_pipeline > 1 else 1,
        )[ranks.rank()]
        step = self._tokens_multiple
        sizes = [max(1, -(-sum(lengths[i] for i in indices) // step)) * step for indices in mine]
        if layout.pipeline > 1:
            # One shape for what stages exchange: they need not tell each other shapes, in which gloo gets stuck.
            sizes = [max(sizes)] * len(sizes)
        batches = []
        for indices, num_tokens in zip(mine, sizes, strict=True):
            whole = pack([sequences[i] for i in indices], indices, context=layout.context, num_tokens=num_tokens)
            batches.append(split_context(whole, rank=context.rank(), context=context.size()).to(self.parallel.device))
        return batches

    @property
    def _tokens_multiple(self) -> int:
        """A micro-batch is filled up to a multiple of this, so that every split of it is even (and FP8's 16)."""
        layout = self.config.parallel
        split = (2 * layout.context if layout.context > 1 else 1) * (layout.tensor if layout.sequence else 1)
        return split if self.config.precision.fp8 == "none" else math.lcm(split, 16 * layout.context * layout.tensor)

    def score(self, steps: Sequence[Sequence[PackedBatch]]) -> list[list[PackedBatch]]:
        """The micro-batches of each optimizer step, with old_logp_T and ref_logp_T filled in on the last stage.

        Without a reference (divergence none) ref_logp_T is old_logp_T, which the loss does not look at.
        """
        old = [self._score(batches, reweighted=False) for batches in steps]
        ref = old
        if self.reference is not None:
            with self.reference.in_place():
                ref = [self._score(batches, reweighted=True) for batches in steps]
        if not self.parallel.is_last_stage:
            return [list(batches) for batches in steps]
        return [
            [replace(b, old_logp_T=o, ref_logp_T=r) for b, o, r in zip(*of_step, strict=True)]
            for of_step in zip(steps, old, ref, strict=True)
        ]

    def _score(self, batches: Sequence[PackedBatch], *, reweighted: bool) -> list[Tensor]:
        for chunk in self.wrapped:
            chunk.eval()
        return self._passes.score(batches, reweighted=reweighted)

    def logprob_gap(self, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """Mean and largest |engine - trainer| log-probability over the sampled tokens of scored `batches`, nats."""
        mine = []
        for batch in batches:
            if batch.old_logp_T is not None:
                gap_T = (batch.old_logp_T - batch.engine_logp_T).abs().masked_fill(~batch.mask_T, 0.0)
                mine.append({"sum": gap_T.sum(), "max": gap_T.max(), "tokens": batch.mask_T.sum()})
        items = gather_over_data(mine, self.parallel)
        return {
            "rollout/logprob_gap_mean": total(items, "sum") / total(items, "tokens"),
            "rollout/logprob_gap_max": max(item["max"] for item in items),
        }

    def train_step(self, batches: Sequence[PackedBatch], loss: LossFunction) -> dict[str, float]:
        """One optimizer step. Returns the loss's means, `grad_norm` (before clipping) and `lr`."""
        for chunk in self.wrapped:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        means = self._passes.forward_backward(batches, loss)
        self.scheduler.step(increment=1)  # before the update: after it, a warm-up's first step would have rate 0
        _, grad_norm, _ = self.optimizer.step()  # a gradient that is not finite has raised in forward_backward
        return {**means, "grad_norm": float(grad_norm), "lr": self.optimizer.param_groups[0]["lr"]}

    def hf_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The current weights as whole Hugging Face tensors, on every rank; to be consumed to the end by all."""
        with torch.no_grad():
            yield from self._weights.hf_tensors()
