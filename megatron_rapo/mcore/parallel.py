"""Build the trainer's process groups. They are built once and passed down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_rapo.config import ParallelConfig


@dataclass(frozen=True)
class Parallel:
    """This process's place in the trainer's layout."""

    device: torch.device
    tensor_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    context_group: dist.ProcessGroup
    data_group: dist.ProcessGroup  # replicas; without context parallelism
    data_context_group: dist.ProcessGroup

    @property
    def is_last_stage(self) -> bool:
        """Return whether this rank's pipeline stage has the output layer, and so the log-probabilities."""
        return self.pipeline_group.rank() == self.pipeline_group.size() - 1


def init_parallel(config: ParallelConfig, *, timeout_s: float, seed: int) -> Parallel:
    """Build Megatron's process groups. Collective; torch.distributed must be initialised."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor,
        pipeline_model_parallel_size=config.pipeline,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline if config.virtual_pipeline > 1 else None,
        context_parallel_size=config.context,
        distributed_timeout_minutes=timeout_s / 60,  # used as timedelta(minutes=...)
        create_gloo_process_groups=dist.get_backend() != "fake",  # a dry run has no other processes
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    on_gpu = torch.cuda.is_available()
    return Parallel(
        device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        context_group=parallel_state.get_context_parallel_group(),
        data_group=parallel_state.get_data_parallel_group(),
        data_context_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
