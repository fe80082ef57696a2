"""The [parallel] section."""

from __future__ import annotations

from pydantic import Field, model_validator

from megatron_rapo.config.section import MAX_SIZE, Section


class ParallelConfig(Section):
    """Lay out the trainer over processes. Data parallelism takes the remaining factor of the processes."""

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
        """Return how many processes share one copy of the model and one batch: tensor x pipeline x context."""
        return self.tensor * self.pipeline * self.context
