"""Build Megatron's data-parallel wrapper, optimizer and learning-rate schedule."""

from __future__ import annotations

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer import TransformerConfig

from megatron_rapo.config import Config
from megatron_rapo.mcore import bucket_padding, torch_adam
from megatron_rapo.mcore.model import HiddenStatesModel


def wrap(config: Config, megatron: TransformerConfig, chunks: list[HiddenStatesModel]) -> list[DistributedDataParallel]:
    """Wrap the chunks with float32 gradient buffers, reduced over data- and context-parallel ranks."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.optimizer.distributed,
        check_for_nan_in_grad=False,  # the policy skips such a step; Megatron would raise during it
    )
    return [
        DistributedDataParallel(megatron, ddp_config, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)
    ]


def build_optimizer(
    config: Config, megatron: TransformerConfig, chunks: list[DistributedDataParallel]
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Build AdamW over the wrapped chunks and its schedule, counted in optimizer steps; register both in `megatron`."""
    torch_adam.install()
    bucket_padding.install()
    settings = config.optimizer
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad_norm,
            bf16=megatron.bf16,
            params_dtype=megatron.params_dtype,
            use_distributed_optimizer=settings.distributed,
            timers=megatron.timers,
        ),
        chunks,
    )
    torch_adam.fuse_on_cpu(optimizer)
    scheduler = make_scheduler(config, optimizer)
    megatron.finalize_model_grads_func = finalize_model_grads
    megatron.grad_scale_func = optimizer.scale_loss
    return optimizer, scheduler


def make_scheduler(config: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Build the schedule of learning rates, counted in optimizer steps.

    The schedule steps before each update, so optimizer step n of the run uses the schedule's n-th rate. The rate is lr
    at the end of the warm-up (at step 1 without a warm-up, or with one of one step), and min_lr at the last step.
    """
    settings = config.optimizer
    total_steps = config.run.steps * config.batch.optimizer_steps_per_rollout
    warmup_steps = max(1, settings.warmup_steps)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=warmup_steps,
        lr_decay_steps=max(total_steps, warmup_steps + 1),  # Megatron requires a decay after the warm-up
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Give a fresh Adam its state: megatron-core 0.16.1 expects it before it loads a distributed optimizer."""
    for part in torch_adam.parts(optimizer):
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, torch.optim.Adam):  # AdamW too; apex and TE count steps in their groups
            for state in part.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))
