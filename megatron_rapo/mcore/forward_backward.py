"""Score and train micro-batches through Megatron's pipeline schedules.

T packed tokens of a micro-batch on this context-parallel rank, N of them sampled, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.profiler import record_function

from megatron_rapo.algo import LossSums
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.mcore.pipeline_stages import pipeline_settings
from megatron_rapo.runtime.determinism import deterministic_algorithms
from megatron_rapo.scoring.output_head import ReferenceHead, TokenScores, token_scores
from megatron_rapo.scoring.packing import PackedBatch

LossFunction = Callable[[TokenScores, PackedBatch], LossSums]


class Scorer(NamedTuple):
    """A set of weights that a scoring pass uses; `weights` puts them in place for one micro-batch at a time."""

    is_reference: bool
    weights: Callable[[], AbstractContextManager[None]] = nullcontext


POLICY = Scorer(is_reference=False)


class Trained(NamedTuple):
    """The result of a training pass over one optimizer step."""

    means: dict[str, float]  # by name
    batches: list[PackedBatch]  # the micro-batches as they were trained on; empty but on the last pipeline stage


@dataclass(frozen=True, kw_only=True)
class ExactReference:
    """What the exact divergence needs besides hidden states: the reference's output layer, and the direction."""

    head_weight: Tensor  # of the reference, on this tensor rank
    direction: Literal["forward", "reverse"]


@dataclass(frozen=True, kw_only=True)
class ForwardBackward:
    """Scoring and training passes over the model's chunks. Both use Megatron's pipeline schedule."""

    chunks: Sequence[torch.nn.Module]
    sequences: Callable[[PackedBatch], PackedSeqParams]  # tells the attention where sequences start and end
    parallel: Parallel
    head_weight: Tensor | None  # the output layer's rows on this tensor rank; None but on the last pipeline stage
    vocab_size: int
    temperature: float  # of the rollout: pi_theta is the distribution that was sampled from
    deterministic: bool = False
    exact: ExactReference | None = None  # on the last pipeline stage, if the divergence is exact

    def score(self, batches: Sequence[PackedBatch], *scorers: Scorer) -> list[PackedBatch]:
        """Score the micro-batches with all `scorers` in one pass through the pipeline.

        Returns the micro-batches; on the last pipeline stage they have the scores. The policy's are old_logp_T. The
        reference's are ref_logp_T, by pi_ref^phi / Z, and its hidden states if the divergence is exact.
        Collective over the model-parallel ranks.
        """

        def forward(data: Iterator[Any], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., dict[str, Any]]]:
            scorer, batch = next(data)

            def collect(hidden_TD: Tensor, non_loss_data: bool) -> dict[str, Any]:
                assert non_loss_data
                with scorer.weights():
                    return self._scores(hidden_TD, batch, of_reference=scorer.is_reference)

            with scorer.weights():
                return self._hidden(chunk, batch), collect

        work = [(scorer, batch) for scorer in scorers for batch in batches]
        with torch.no_grad():
            found = self._run(
                forward, work, _sizes(batches) * len(scorers), forward_only=True, collect_non_loss_data=True
            )
        scored = list(batches)
        for place, scores in enumerate(found):  # empty except on the last stage
            scored[place % len(scored)] = replace(scored[place % len(scored)], **scores)
        return scored

    def forward_backward(self, batches: Sequence[PackedBatch], loss: LossFunction) -> Trained:
        """Accumulate the gradient of `loss` over the micro-batches of an optimizer step.

        A micro-batch without old_logp_T gets it from this pass: its old policy is the current one.
        Gradients are summed over micro-batches, data- and context-parallel ranks, and divided by the number of tokens
        that the masks select in all of them. The means of the loss and its metrics use the same denominator. They are
        returned with it (`num_tokens`) on every rank. Collective over the world.
        """
        trained: list[PackedBatch] = []

        def forward(data: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(data)
            return self._hidden(chunk, batch), partial(reduce, batch)

        def reduce(batch: PackedBatch, hidden_TD: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            scale_T = torch.full_like(batch.phi_T, 1 / self.temperature)
            scores = self._token_scores(hidden_TD, batch, scale_T, self._reference(batch))
            batch = with_old_policy(batch, scores.logp_T.detach())
            trained.append(batch)
            sums = loss(scores, batch)
            num_tokens = batch.mask_T.sum().to(torch.int)
            return sums.loss, num_tokens, {"loss": sums.loss.detach(), "num_tokens": num_tokens, **sums.metrics}

        collected = self._run(forward, batches, _sizes(batches), forward_only=False)
        items = gather_over_data(collected, self.parallel)
        num_tokens = total(items, "num_tokens")  # 0 if every completion is excluded from the loss
        means = {name: total(items, name) / max(1, num_tokens) for name in items[0] if name != "num_tokens"}
        return Trained({**means, "num_tokens": num_tokens}, trained)

    def _run(self, forward: Callable[..., Any], work: Sequence[Any], sizes: Sequence[int], **kwargs: Any) -> Any:
        """Run each piece of `work` through the chunks and stages. `sizes` are the pieces' tokens on this rank."""
        chunks = list(self.chunks)
        with deterministic_algorithms(self.deterministic):
            return get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=[iter(work) for _ in chunks] if len(chunks) > 1 else iter(work),
                model=chunks if len(chunks) > 1 else chunks[0],
                num_microbatches=len(work),
                seq_length=max(sizes),
                micro_batch_size=1,
                **pipeline_settings(get_model_config(chunks[0]), sizes),
                **kwargs,
            )

    def _hidden(self, chunk: torch.nn.Module, batch: PackedBatch) -> Tensor:
        """Return hidden states [T, D] on the last stage, and elsewhere the input of the next stage."""
        with record_function("layers"):
            output: Tensor = chunk(
                input_ids=batch.token_ids_T[None],
                position_ids=None,
                attention_mask=None,
                packed_seq_params=self.sequences(batch),
            )
        return output

    def _scores(self, hidden_TD: Tensor, batch: PackedBatch, *, of_reference: bool) -> dict[str, Any]:
        """Return the fields that a scoring pass adds to a micro-batch."""
        scale_T = (batch.phi_T if of_reference else torch.ones_like(batch.phi_T)) / self.temperature
        logp_T = self._token_scores(hidden_TD, batch, scale_T).logp_T
        if not of_reference:
            return {"old_logp_T": logp_T}
        hidden_RD = self._share(hidden_TD.index_select(0, batch.scored_N)).cpu() if self.exact else None
        return {"ref_logp_T": logp_T, "ref_hidden_RD": hidden_RD}

    def _token_scores(
        self, hidden_TD: Tensor, batch: PackedBatch, scale_T: Tensor, reference: ReferenceHead | None = None
    ) -> TokenScores:
        """Score the sampled tokens. The others get 0 and skip the output layer."""
        assert self.head_weight is not None, "only the last pipeline stage has the output layer"
        chosen_N = batch.scored_N
        with record_function("output head"):
            scores = token_scores(
                hidden_TD.index_select(0, chosen_N),
                self.head_weight,
                batch.targets_T[chosen_N],
                scale_T[chosen_N],
                vocab_size=self.vocab_size,
                group=self.parallel.tensor_group,
                reference=reference,
            )

        def placed(values_N: Tensor) -> Tensor:
            return values_N.new_zeros(len(scale_T)).index_copy(0, chosen_N, values_N)

        kl_T = None if scores.kl_T is None else placed(scores.kl_T)
        return TokenScores(placed(scores.logp_T), placed(scores.entropy_T), kl_T)

    @property
    def _tensor_size(self) -> int:
        return self.parallel.tensor_group.size()

    def _share(self, hidden_ND: Tensor) -> Tensor:
        """Return this tensor rank's share of the rows, to save memory. All shares have equally many rows."""
        rows = -(-len(hidden_ND) // self._tensor_size)
        padded_ND = torch.nn.functional.pad(hidden_ND, (0, 0, 0, rows * self._tensor_size - len(hidden_ND)))
        return padded_ND[self.parallel.tensor_group.rank() * rows :][:rows]

    def _reference(self, batch: PackedBatch) -> ReferenceHead | None:
        if self.exact is None:
            return None
        assert batch.ref_hidden_RD is not None, "the micro-batch was not scored by the reference"
        shares = [torch.empty_like(batch.ref_hidden_RD, device=self.parallel.device) for _ in range(self._tensor_size)]
        dist.all_gather(shares, batch.ref_hidden_RD.to(self.parallel.device), group=self.parallel.tensor_group)
        chosen_N = batch.scored_N
        return ReferenceHead(
            hidden_TD=torch.cat(shares)[: len(chosen_N)],
            weight_VpD=self.exact.head_weight,
            scale_T=batch.phi_T[chosen_N] / self.temperature,
            direction=self.exact.direction,
        )


def _sizes(batches: Sequence[PackedBatch]) -> list[int]:
    return [len(batch.token_ids_T) for batch in batches]


def with_old_policy(batch: PackedBatch, logp_T: Tensor) -> PackedBatch:
    """Return `batch` with the policy's `logp_T` in place of missing log-probabilities (old policy, reference).

    Without a reference (divergence none) the loss ignores ref_logp_T.
    """
    absent = [name for name in ("old_logp_T", "ref_logp_T") if getattr(batch, name) is None]
    return replace(batch, **dict.fromkeys(absent, logp_T))


def sequence_mean(values_T: Tensor, batch: PackedBatch, group: dist.ProcessGroup) -> Tensor:
    """Return at each token the mean of `values_T` over the selected tokens of its sequence, [T]; 0 if none is selected.

    Collective over the context-parallel `group`. Each of its ranks has an equal part of every sequence. A rank's part
    of a short sequence may be alignment padding only.
    """
    lengths_S = batch.cu_seqlens.diff() // group.size()
    sequence_T = torch.repeat_interleave(lengths_S, output_size=len(values_T))
    selected_T = batch.mask_T.to(values_T.dtype)
    sums_2S = values_T.new_zeros(2, len(lengths_S))
    sums_2S.index_add_(1, sequence_T, torch.stack([values_T.masked_fill(~batch.mask_T, 0.0), selected_T]))
    dist.all_reduce(sums_2S, group=group)
    return (sums_2S[0] / sums_2S[1].clamp(min=1))[sequence_T]


def gather_over_data(mine: Sequence[Mapping[str, Tensor]], parallel: Parallel) -> list[dict[str, float]]:
    """Return the numbers of every micro-batch of all data- and context-parallel ranks, on every rank.

    Collective over the world. Uses `mine` of the last pipeline stage only, and of its first tensor rank.
    """
    counts = parallel.is_last_stage and parallel.tensor_group.rank() == 0
    numbers = [dict(zip(item, _floats(list(item.values())), strict=True)) for item in mine] if counts else []
    everyone: list[list[dict[str, float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, numbers)
    return [item for items in everyone for item in items]


def _floats(values: Sequence[Tensor]) -> list[float]:
    """Convert scalar tensors to floats with one transfer from the device."""
    numbers: list[float] = torch.stack([value.double() for value in values]).tolist()
    return numbers


def total(items: Sequence[Mapping[str, float]], name: str) -> float:
    """Sum one number over the results of `gather_over_data`."""
    return sum(item[name] for item in items)
