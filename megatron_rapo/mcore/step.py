"""Scoring and training passes through Megatron's pipeline schedules.

T packed tokens of a micro-batch on this context-parallel rank, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_rapo.algo import LossSums
from megatron_rapo.mcore.output_head import log_prob_and_entropy
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.packing import PackedBatch

LossFunction = Callable[[Tensor, Tensor, PackedBatch], LossSums]  # (logp_T, entropy_T, batch)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What both passes need of the model: its chunks as Megatron's schedule takes them, and its vocabulary."""

    chunks: Sequence[torch.nn.Module]
    parallel: Parallel
    head_weight: Tensor | None  # the output layer's rows on this tensor rank; None but on the last pipeline stage
    vocab_size: int
    temperature: float  # of the rollout: pi_theta is the distribution that was sampled from

    def score(self, batches: Sequence[PackedBatch], *, reweighted: bool) -> list[Tensor]:
        """Log-probability of each target, one float32 [T] per micro-batch; empty but on the last pipeline stage.

        `reweighted` scores pi^phi / Z instead of pi. Collective over the model-parallel ranks.
        """

        def forward(data: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Tensor]]:
            batch = next(data)
            scale_T = (batch.phi_T if reweighted else torch.ones_like(batch.phi_T)) / self.temperature

            def collect(hidden_TD: Tensor, non_loss_data: bool) -> Tensor:
                assert non_loss_data
                return self._log_probs(hidden_TD, batch, scale_T)[0]

            return self._hidden(chunk, batch), collect

        with torch.no_grad():
            scored: list[Tensor] = self._run(forward, batches, forward_only=True, collect_non_loss_data=True)
        return scored

    def forward_backward(self, batches: Sequence[PackedBatch], loss: LossFunction) -> dict[str, float]:
        """Accumulate the gradient of `loss` over the micro-batches of an optimizer step.

        Gradients are summed over micro-batches, data- and context-parallel ranks and divided by the number of tokens
        that the masks select in all of them. Returns the means, by the same denominator, of the loss and its metrics,
        on every rank. Collective over the world.
        """

        def forward(data: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(data)
            return self._hidden(chunk, batch), partial(reduce, batch)

        def reduce(batch: PackedBatch, hidden_TD: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            scale_T = torch.full_like(batch.phi_T, 1 / self.temperature)
            sums = loss(*self._log_probs(hidden_TD, batch, scale_T), batch)
            num_tokens = batch.mask_T.sum().to(torch.int)
            return sums.loss, num_tokens, {"loss": sums.loss.detach(), "num_tokens": num_tokens, **sums.metrics}

        collected = self._run(forward, batches, forward_only=False)
        items = gather_over_data(collected, self.parallel)
        num_tokens = total(items, "num_tokens")
        return {name: total(items, name) / num_tokens for name in items[0] if name != "num_tokens"}

    def _run(self, forward: Callable[..., Any], batches: Sequence[PackedBatch], **kwargs: Any) -> Any:
        chunks = list(self.chunks)
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[iter(batches) for _ in chunks] if len(chunks) > 1 else iter(batches),
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=len(batches),
            seq_length=max(len(batch.token_ids_T) for batch in batches) * self.parallel.config.context,
            micro_batch_size=1,
            **kwargs,
        )

    def _hidden(self, chunk: torch.nn.Module, batch: PackedBatch) -> Tensor:
        """[T, D] on the last stage; what goes to the next one elsewhere."""
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
        )
        output: Tensor = chunk(
            input_ids=batch.token_ids_T[None], position_ids=None, attention_mask=None, packed_seq_params=packed
        )
        return output

    def _log_probs(self, hidden_TD: Tensor, batch: PackedBatch, scale_T: Tensor) -> tuple[Tensor, Tensor]:
        assert self.head_weight is not None, "only the last pipeline stage has the output layer"
        return log_prob_and_entropy(
            hidden_TD,
            self.head_weight,
            batch.targets_T,
            scale_T,
            vocab_size=self.vocab_size,
            group=self.parallel.tensor_group,
        )


def gather_over_data(mine: Sequence[Mapping[str, Tensor]], parallel: Parallel) -> list[dict[str, float]]:
    """The numbers of every micro-batch of all data- and context-parallel ranks, on every rank.

    Collective over the world. `mine` counts on the last pipeline stage only, whose tensor ranks all hold the same.
    """
    counts = parallel.is_last_stage and parallel.tensor_group.rank() == 0
    numbers = [{name: float(value) for name, value in item.items()} for item in mine] if counts else []
    everyone: list[list[dict[str, float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, numbers)
    return [item for items in everyone for item in items]


def total(items: Sequence[Mapping[str, float]], name: str) -> float:
    """Sum of one number over what `gather_over_data` returned."""
    return sum(item[name] for item in items)
