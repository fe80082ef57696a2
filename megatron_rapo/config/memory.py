"""The [memory] section."""

from __future__ import annotations

from megatron_rapo.config.section import Section


class MemoryConfig(Section):
    """Trade GPU memory for time. Without a GPU these settings are refused."""

    engine_sleep: bool = False
    """Release the engine's weights and key-value cache while the trainer scores and trains (vLLM's sleep mode).

    Needs: a GPU.
    Also called: sleep mode, free cache engine.
    """
    reference_on_device: bool = False
    """Keep the reference's weights on the GPU too. One pass then scores with them and with the policy's: no exchange
    with host memory and one pipeline bubble instead of two. It takes as much memory again as the weights.

    Needs: a GPU, and an algorithm.divergence other than none.
    Excludes: precision.fp8 other than none.
    """
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory and release the gradients, except while training and saving.

    Needs: a GPU.
    Also called: CPU offload, optimizer offload.
    """
