"""Build this rank's chunks of a GPTModel from a Hugging Face folder, and read their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig

from megatron_rapo.config import Config, ParallelConfig
from megatron_rapo.mcore import fused
from megatron_rapo.mcore.fp8_settings import fp8_settings
from megatron_rapo.mcore.layers import ACTIVATIONS, block_spec
from megatron_rapo.mcore.nvtx_ranges import Ranges
from megatron_rapo.mcore.parallel import Parallel
from megatron_rapo.mcore.torch_layers.attention import SequencesForTorch, sequences_for_transformer_engine
from megatron_rapo.models import ModelShape, WeightReader
from megatron_rapo.models.parameter_map import (
    TORCH_NORMS,
    TRANSFORMER_ENGINE_NORMS,
    NormNames,
    fill,
    layers_per_chunk,
    padded_vocab_size,
    trainer_shards,
)
from megatron_rapo.runtime.devices import Backend
from megatron_rapo.scoring.packing import PackedBatch

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def norm_names(backend: Backend) -> NormNames:
    """Return the names that the layers have for their norms."""
    return TRANSFORMER_ENGINE_NORMS if backend.transformer_engine else TORCH_NORMS


def transformer_config(config: Config, shape: ModelShape, backend: Backend) -> TransformerConfig:
    """Return Megatron's configuration of the model, its layout and its number formats."""
    parallel, dtype = config.parallel, backend.dtype
    kernels = fused.settings(fused.fused_kernels(backend.layers))
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        normalization=shape.family.normalization,
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=ACTIVATIONS[shape.family.activation].function,
        add_bias_linear=False,
        add_qkv_bias=shape.family.qkv_bias,
        qk_layernorm=shape.family.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        pipeline_model_parallel_layout=_pipeline_layout(parallel, shape.num_layers),
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        variable_seq_lengths=parallel.pipeline > 1,  # micro-batches differ in size (mcore/pipeline_stages.py)
        moe_token_dispatcher_type="alltoall",  # without it Megatron refuses variable lengths, also without experts
        bf16=dtype == torch.bfloat16,
        calculate_per_token_loss=True,  # loss functions return sums; the denominator is global
        use_cpu_initialization=True,
        perform_initialization=False,  # every weight is read from the checkpoint
        batch_p2p_comm=False,
        bias_dropout_fusion=False,  # there is no dropout, and no bias before it
        masked_softmax_fusion=False,  # for Megatron's own attention, which is not used
        deterministic_mode=config.run.deterministic,
        timers=Ranges(),
        # True means "take the layer specification's activation": ours, if torch's layers have no fused kernel for it
        use_te_activation_func=not backend.transformer_engine and "bias_activation_fusion" not in kernels,
        **kernels,
        **fp8_settings(config.precision),
        **_RECOMPUTE[config.model.recompute],
    )


def _pipeline_layout(parallel: ParallelConfig, num_layers: int) -> list[list[str]] | None:
    """Return the parts of each model chunk, in the order of the model, or None without a pipeline."""
    if parallel.pipeline == 1:
        return None
    chunks = [["decoder"] * n for n in layers_per_chunk(num_layers, parallel.pipeline * parallel.virtual_pipeline)]
    return [["embedding", *chunks[0]], *chunks[1:-1], [*chunks[-1], "loss"]]


class HiddenStatesModel(GPTModel):
    """A GPTModel whose last stage returns the input of the output layer, [T, D], instead of logits.

    `output_head.py` computes log-probabilities from it, chunk by chunk. Every tensor rank has the whole input. The
    backward pass sums its gradients over the tensor ranks, since each rank has only a part of the vocabulary.
    """

    def _postprocess(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        if not self.post_process:
            return hidden_states
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, group=group)
        else:
            hidden_states = copy_to_tensor_model_parallel_region(hidden_states, group)
        return hidden_states.squeeze(1)


def attention_sequences(
    config: Config, shape: ModelShape, backend: Backend
) -> Callable[[PackedBatch], PackedSeqParams]:
    """Return the function that describes a micro-batch's sequences to the layers' attention."""
    if backend.transformer_engine:
        return sequences_for_transformer_engine
    return SequencesForTorch.of(
        head_dim=shape.head_dim, rope_theta=shape.rope_theta, dtype=backend.dtype, context_size=config.parallel.context
    )


def head_weight(chunks: list[HiddenStatesModel]) -> torch.nn.Parameter | None:
    """Return the output layer's weight on this rank, tied or not. None except on the last pipeline stage."""
    last = chunks[-1]
    if not last.post_process:
        return None
    tied = last.share_embeddings_and_output_weights
    weight: torch.nn.Parameter = last.shared_embedding_or_output_weight() if tied else last.output_layer.weight
    return weight


def build_chunks(
    config: Config, shape: ModelShape, backend: Backend, megatron: TransformerConfig, parallel: Parallel
) -> list[HiddenStatesModel]:
    """Build this rank's model chunks (one, or one per virtual pipeline stage) without reading weights."""
    virtual_stages = megatron.virtual_pipeline_model_parallel_size
    chunks = []
    for vp_stage in range(virtual_stages) if virtual_stages else [None]:
        where = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
        chunk = HiddenStatesModel(
            config=megatron,
            transformer_layer_spec=block_spec(backend.layers, megatron, shape.family, vp_stage),
            vocab_size=padded_vocab_size(shape.vocab_size, config.parallel.tensor),
            max_sequence_length=shape.max_position,
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope" if backend.transformer_engine else "none",  # PackedAttention rotates
            rotary_base=shape.rope_theta,
            vp_stage=vp_stage,
        )
        chunks.append(chunk.to(parallel.device))
    return chunks


def named_parameters(chunks: list[HiddenStatesModel]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield this rank's parameters by the map's names, which number layers over all pipeline stages."""
    for chunk in chunks:
        numbers = {str(i): str(layer.layer_number - 1) for i, layer in enumerate(chunk.decoder.layers)}
        for name, parameter in chunk.named_parameters():
            parts = name.split(".")
            if parts[:2] == ["decoder", "layers"]:
                parts[2] = numbers[parts[2]]
            yield ".".join(parts), parameter


def load_weights(
    chunks: list[HiddenStatesModel], folder: Path, shape: ModelShape, norms: NormNames, parallel: Parallel
) -> None:
    """Read this rank's slices of the Hugging Face weights in `folder` into the chunks.

    Raises ConfigError for a missing tensor and ValueError for a wrong shape.
    """
    table = trainer_shards(shape, tensor=parallel.tensor_group.size(), rank=parallel.tensor_group.rank(), norms=norms)
    weights = WeightReader(folder)
    with torch.no_grad():
        for name, parameter in named_parameters(chunks):
            shard = table[name]
            assert parameter.shape == shard.shape, f"{name}: {tuple(parameter.shape)} != {shard.shape}"
            if shard.split and not hasattr(parameter, "tensor_model_parallel"):
                # Megatron's own initialisation, which we skip, would set this mark. Without it, the gradient norm would
                # count only the first tensor rank's shard.
                set_tensor_model_parallel_attributes(parameter, True, shard.axis, 1)
            fill(parameter.data, shard, weights.read)
