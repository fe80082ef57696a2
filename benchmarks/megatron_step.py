"""A training step of Megatron-Core alone: what a step costs before there is reinforcement learning in it.

T packed tokens of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_rapo.config import Config
from megatron_rapo.mcore.layers import block_spec
from megatron_rapo.mcore.model import attention_sequences, load_weights, norm_names, transformer_config
from megatron_rapo.mcore.optimizer import build_optimizer, wrap
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.models import ModelShape
from megatron_rapo.runtime.devices import Backend
from megatron_rapo.scoring.packing import PackedBatch


class BareStep:
    """Plain cross-entropy of the sampled tokens, with the weights, layers and optimizer settings of `config`.

    Neither tensor nor pipeline parallel.
    """

    def __init__(self, config: Config, shape: ModelShape, parallel: Parallel) -> None:
        backend = Backend.resolve(config)
        megatron = transformer_config(config, shape, backend)
        model = GPTModel(
            config=megatron,
            transformer_layer_spec=block_spec("torch", megatron, shape.family, None),
            vocab_size=shape.vocab_size,
            max_sequence_length=shape.max_position,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="none",  # the layers' attention rotates
        )
        self._sequences = attention_sequences(config, shape, backend)
        load_weights([model], config.model.path, shape, norm_names(backend), parallel)
        self._wrapped = wrap(config, megatron, [model])
        self._optimizer, self._scheduler = build_optimizer(config, megatron, self._wrapped)

    def __call__(self, batches: Sequence[PackedBatch]) -> float:
        """Run one optimizer step. Return the mean cross-entropy, nats per sampled token."""
        [model] = self._wrapped
        model.train()
        model.zero_grad_buffer()
        self._optimizer.zero_grad()
        reduced = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iter(batches),
            model=model,
            num_microbatches=len(batches),
            seq_length=max(len(batch.token_ids_T) for batch in batches),
            micro_batch_size=1,
            forward_only=False,
        )
        self._scheduler.step(increment=1)
        self._optimizer.step()
        sums = torch.stack([each["sums"] for each in reduced]).sum(0)
        return float(sums[0] / sums[1])

    def _forward(self, data: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(data)
        losses_1T = model(
            input_ids=batch.token_ids_T[None],
            position_ids=None,
            attention_mask=None,
            labels=batch.targets_T[None],
            packed_seq_params=self._sequences(batch),
        )
        return losses_1T, partial(_loss, batch)


def _loss(batch: PackedBatch, losses_1T: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the sum over the selected tokens, their number and the logged sums, as Megatron's pretraining script."""
    loss, num_tokens = (losses_1T[0] * batch.mask_T).sum(), batch.mask_T.sum().to(torch.int)
    return loss, num_tokens, {"sums": torch.stack([loss.detach(), num_tokens.float()])}
