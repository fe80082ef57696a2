"""Exchange micro-batches of different, known sizes between pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig


class StaticShapeP2P(P2PCommunicator):
    """Communication between pipeline stages without an exchange of shapes: every stage knows all micro-batches.

    Megatron's own exchange of shapes waits for the device twice per micro-batch, and deadlocks with gloo. An instance
    serves one schedule: forward and backward, in Megatron's order. `sizes` are the rows sent for each micro-batch.
    """

    def __init__(self, config: TransformerConfig, sizes: Sequence[int]) -> None:
        super().__init__(parallel_state.get_pipeline_model_parallel_group(), config)
        stage, stages = self.pp_group.rank(), self.pp_group.size()
        table = get_schedule_table(len(sizes), config.virtual_pipeline_model_parallel_size or 1, stages)

        def arriving(leads: bool) -> Iterator[list[int]]:
            # The stage that leads (the first one forward, the last one backward) receives nothing for the first chunk.
            return iter([[sizes[i], 1, config.hidden_size] for i, chunk in table if chunk > 0 or not leads])

        self._forward, self._backward = arriving(stage == 0), arriving(stage == stages - 1)

    def _communicate_shapes(
        self, tensor_send_next: Any, tensor_send_prev: Any, recv_prev: bool, recv_next: bool
    ) -> tuple[list[int] | None, list[int] | None]:
        return next(self._forward) if recv_prev else None, next(self._backward) if recv_next else None


def pipeline_settings(config: TransformerConfig, sizes: Sequence[int]) -> dict[str, Any]:
    """Return extra arguments for Megatron's pipeline schedules; empty without a pipeline.

    `sizes` are the tokens of the micro-batches on this context-parallel rank.
    """
    if config.pipeline_model_parallel_size == 1:
        return {}
    split = config.tensor_model_parallel_size if config.sequence_parallel else 1
    groups = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp", "pp", "dp_cp", "embd", "pos_embd"])
    return {"p2p_communicator": StaticShapeP2P(config, [size // split for size in sizes]), "pg_collection": groups}
