import dataclasses
import importlib.util
import re
from types import SimpleNamespace

import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.models import ModelShape
from megatron_rapo.preflight import checks
from megatron_rapo.preflight.checks import (
    check_disk,
    check_engine,
    check_machine,
    check_model,
    check_rollout,
    check_world_size,
)
from tests.settings import EVALUATION, refusal


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (
            ["parallel.tensor=2", "parallel.pipeline=3", "parallel.context=2", "batch.tokens_per_microbatch=9000"],
            8,
            "parallel: tensor=2 x pipeline=3 x context=2 = 12 does not divide the 8 processes; "
            "start a multiple of 12 processes or change the layout.",
        ),
        (
            ["rollout.tensor=3"],
            4,
            "rollout.tensor=3: does not divide the 4 processes; set rollout.tensor to a divisor of it.",
        ),
        (
            ["rollout.tensor=2"],
            6,
            "batch.prompts_per_step=8: not divisible by the 3 engines (6 processes / rollout.tensor=2); "
            "set a multiple of 3.",
        ),
        (
            ["batch.oversampled_prompts=3"],
            2,
            "batch.oversampled_prompts=3: not divisible by the 2 engines (2 processes / rollout.tensor=1); set a "
            "multiple of 2.",
        ),
        (
            ["batch.prompts_per_step=4", "batch.completions_per_prompt=3", "batch.optimizer_steps_per_rollout=4"],
            4,
            "batch.prompts_per_step=4: 3 completions per optimizer step cannot feed 4 data-parallel ranks; "
            "raise it or the model-parallel sizes.",
        ),
        (
            ["optimizer.distributed=true", "parallel.tensor=2"],
            2,
            "optimizer.distributed=true: shards over data-parallel ranks, and this layout has one; "
            "set optimizer.distributed=false.",
        ),
    ],
)
def test_world_size(load, overrides, world_size, message):
    assert refusal(check_world_size, load(*overrides), world_size) == message


@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        ([], 1),
        ([], 8),
        (["parallel.tensor=2", "rollout.tensor=4"], 8),
        (["batch.prompts_per_step=4", "batch.completions_per_prompt=4", "batch.optimizer_steps_per_rollout=4"], 4),
        (["optimizer.distributed=true"], 2),
        (["optimizer.distributed=true", "parallel.context=2"], 2),  # it shards over context ranks too
    ],
)
def test_world_sizes_that_work(load, overrides, world_size):
    check_world_size(load(*overrides), world_size)


SHAPE = ModelShape(
    architecture="Qwen2ForCausalLM",
    num_layers=6,
    hidden_size=64,
    ffn_hidden_size=132,
    num_heads=12,
    num_kv_heads=4,
    head_dim=32,
    vocab_size=384,
    tied=True,
    norm_eps=1e-6,
    rope_theta=1e4,
    max_position=1536,
)


@pytest.mark.parametrize(
    ("overrides", "changed", "message"),
    [
        (
            ["parallel.tensor=8"],
            {},
            "parallel.tensor=8: does not divide the model's num_heads=12; choose a tensor-parallel size that does.",
        ),
        (
            ["parallel.tensor=3"],
            {},
            "parallel.tensor=3: neither divides the model's num_kv_heads=4 nor is a multiple of it; "
            "choose a tensor-parallel size that does.",
        ),
        (
            ["parallel.tensor=4"],
            {"ffn_hidden_size": 130},
            "parallel.tensor=4: does not divide the model's ffn_hidden_size=130; "
            "choose a tensor-parallel size that does.",
        ),
        (
            ["parallel.pipeline=2", "parallel.virtual_pipeline=4"],
            {},
            "parallel.pipeline=2, parallel.virtual_pipeline=4: 8 chunks for the model's 6 layers; "
            "choose sizes whose product is at most that.",
        ),
    ],
)
def test_model(load, overrides, changed, message):
    assert refusal(check_model, load(*overrides), dataclasses.replace(SHAPE, **changed)) == message


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["parallel.tensor=4"],
        ["rollout.tensor=8"],  # check_rollout refuses this
        ["parallel.pipeline=3", "parallel.virtual_pipeline=2"],
        ["parallel.pipeline=6"],
    ],
)
def test_models_that_work(load, overrides):
    check_model(load(*overrides), SHAPE)


@pytest.mark.parametrize(
    ("overrides", "world_size", "changed", "message"),
    [
        (
            ["rollout.tensor=3"],
            4,
            {},
            "rollout.tensor=3: does not divide the 4 processes; set rollout.tensor to a divisor of it.",
        ),
        (
            ["rollout.tensor=8"],
            8,
            {},
            "rollout.tensor=8: does not divide the model's num_heads=12; choose a tensor-parallel size that does.",
        ),
        (
            ["rollout.tensor=4"],
            4,
            {"ffn_hidden_size": 130},
            "rollout.tensor=4: does not divide the model's ffn_hidden_size=130; "
            "choose a tensor-parallel size that does.",
        ),
        (
            ["rollout.tensor=6"],
            6,
            {},
            "rollout.tensor=6: neither divides the model's num_kv_heads=4 nor is a multiple of it; "
            "choose a tensor-parallel size that does.",
        ),
        (
            ["rollout.tensor=12"],
            12,
            {"vocab_size": 128},
            "rollout.tensor=12: does not divide the vocabulary's 128 rows (padded to a multiple of 64, as vLLM does); "
            "choose a tensor-parallel size that does.",
        ),
        (
            [],
            1,
            {"max_position": 1535},
            "rollout.max_completion_tokens=512: sequences of up to 1536 tokens, but the model has positions for 1535; "
            "lower it, evaluation.max_completion_tokens or data.max_prompt_tokens.",
        ),
        (
            [*EVALUATION, "evaluation.max_completion_tokens=513"],
            1,
            {},
            "rollout.max_completion_tokens=512: sequences of up to 1537 tokens, but the model has positions for 1536; "
            "lower it, evaluation.max_completion_tokens or data.max_prompt_tokens.",
        ),
    ],
)
def test_rollout(load, overrides, world_size, changed, message):
    shape = dataclasses.replace(SHAPE, **changed)
    assert refusal(check_rollout, load(*overrides), shape, world_size) == message


# 2 (key, value) x 6 layers x 4 heads x 32 x 2 bytes = 3 KiB a token, 4.5 MiB for 1536 of them
@pytest.mark.parametrize(
    ("overrides", "tensor", "needed_mib"),
    [
        ([], 1, 5),
        (["precision.dtype=float32"], 1, 9),
        ([], 2, 3),  # 2 of 4 heads: 2.25
        ([], 4, 2),  # 1.125
        ([], 12, 2),  # three ranks hold the same head
    ],
)
def test_the_key_value_cache_holds_the_longest_sequence(load, overrides, tensor, needed_mib):
    overrides = [*overrides, f"rollout.tensor={tensor}"]
    check_rollout(load(*overrides, f"rollout.kv_cache_mib={needed_mib}"), SHAPE, tensor)
    short = load(*overrides, f"rollout.kv_cache_mib={needed_mib - 1}")
    assert refusal(check_rollout, short, SHAPE, tensor) == (
        f"rollout.kv_cache_mib={needed_mib - 1}: one sequence of 1536 tokens needs {needed_mib} MiB; "
        f"set rollout.kv_cache_mib >= {needed_mib}, and many times that for many sequences."
    )


def test_packed_weights_are_for_a_cpu(load, machine):
    packed = load("rollout.packed=true")
    machine(cuda=False, te=False)
    check_rollout(packed, SHAPE, 1)
    machine(cuda=True, te=False)
    assert refusal(check_rollout, packed, SHAPE, 1) == (
        "rollout.packed=true: packs weights on a CPU and does nothing on a GPU; set rollout.packed=false."
    )


@pytest.fixture
def machine(monkeypatch):
    """Return machine(cuda, te), which sets whether there is a GPU and whether Transformer Engine is installed."""

    def machine(cuda, te):
        monkeypatch.setattr(checks.torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if te else None)
        gpu = SimpleNamespace(total_memory=80 * 2**30)
        monkeypatch.setattr(checks.torch.cuda, "get_device_properties", lambda index: gpu)

    return machine


@pytest.mark.parametrize(
    ("cuda", "processes", "least_refused", "place"),
    [
        (False, 1, 24 * 1024, "this machine has for each of its 1 processes"),
        (False, 8, 3 * 1024, "this machine has for each of its 8 processes"),
        (True, 8, 80 * 1024, "the GPU has"),
    ],
)
def test_key_value_cache_beyond_the_memory(load, machine, monkeypatch, cuda, processes, least_refused, place):
    machine(cuda=cuda, te=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(total=24 * 2**30))
    check_engine(load(f"rollout.kv_cache_mib={least_refused - 1}"))
    assert refusal(check_machine, load(f"rollout.kv_cache_mib={least_refused}")) == (
        f"rollout.kv_cache_mib={least_refused}: more than the {least_refused:,} MiB of memory that {place}, and the "
        "model needs some of it; lower it."
    )


def test_more_sequences_at_a_time_than_memory_for_their_tokens(load, machine, monkeypatch):
    machine(cuda=True, te=False)
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(total=2**28))
    check_engine(load("rollout.max_concurrent=8192"))
    longer = load("rollout.max_concurrent=16384", "data.max_prompt_tokens=3584", "rollout.max_completion_tokens=512")
    assert refusal(check_engine, longer) == (
        "rollout.max_concurrent=16384: vLLM's table of so many sequences of up to 4096 tokens takes 256 MiB, but this "
        "machine has 256 MiB for each of its 1 processes; lower it."
    )


@pytest.mark.parametrize(("cuda", "te"), [(False, True), (True, False), (False, False)])
def test_transformer_engine_must_be_there(load, machine, cuda, te):
    machine(cuda, te)
    assert refusal(check_machine, load("model.layers=transformer_engine")) == (
        "model.layers=transformer_engine: there is no GPU, or Transformer Engine is not installed; "
        "set model.layers=auto or torch."
    )


def test_transformer_engine_needs_half_precision(load, machine):
    machine(cuda=True, te=True)
    check_machine(load("model.layers=transformer_engine"))
    assert refusal(check_machine, load("model.layers=transformer_engine", "precision.dtype=float32")) == (
        "model.layers=transformer_engine: its attention over packed sequences has no float32 kernels; "
        "set precision.dtype=bfloat16 or model.layers=torch."
    )


def test_prompts_are_shared_by_torch_layers_only(load, machine):
    machine(cuda=True, te=True)
    check_machine(load("batch.share_prompts=true", "model.layers=torch"))
    assert refusal(check_machine, load("batch.share_prompts=true")) == (
        "batch.share_prompts=true: Transformer Engine's attention does not support sequences that share a prompt; "
        "set batch.share_prompts=false or model.layers=torch."
    )


def test_fp8_needs_the_layers_that_have_it(load, machine, monkeypatch):
    machine(cuda=True, te=True)
    monkeypatch.setattr(checks.torch.cuda, "get_device_capability", lambda: (9, 0))
    check_machine(load("precision.fp8=hybrid"))
    assert refusal(check_machine, load("precision.fp8=hybrid", "model.layers=torch")) == (
        "precision.fp8=hybrid: Megatron would ignore it with model.layers=torch; use a GPU with Transformer Engine or "
        "set precision.fp8=none."
    )


@pytest.mark.parametrize(
    ("recipe", "capability", "least"),
    [("tensorwise", (8, 0), "8.9"), ("blockwise", (8, 9), "9.0"), ("mxfp8", (9, 0), "10.0")],
)
def test_a_recipe_that_the_gpu_does_not_have(load, machine, monkeypatch, recipe, capability, least):
    machine(cuda=True, te=True)
    monkeypatch.setattr(checks.torch.cuda, "get_device_capability", lambda: capability)
    assert refusal(check_machine, load("precision.fp8=hybrid", f"precision.fp8_recipe={recipe}")) == (
        f"precision.fp8_recipe={recipe}: needs a GPU of compute capability {least}, but this one has "
        f"{'.'.join(map(str, capability))}; set another recipe, or precision.fp8=none."
    )


def test_an_engine_in_fp8_needs_a_gpu_that_has_it_or_none(load, machine, monkeypatch):
    monkeypatch.setattr(checks.torch.cuda, "get_device_capability", lambda: (8, 0))
    machine(cuda=False, te=False)
    check_machine(load("rollout.fp8=true"))
    machine(cuda=True, te=False)
    assert refusal(check_machine, load("rollout.fp8=true")) == (
        "rollout.fp8=true: needs a GPU of compute capability 8.9, but this one has 8.0; set rollout.fp8=false."
    )


def test_more_layers_in_bf16_than_a_stage_has(load):
    settings = ("precision.fp8=hybrid", "precision.bf16_layers_at_start=4", "parallel.pipeline=2")
    assert refusal(check_model, load(*settings), SHAPE) == (
        "precision.bf16_layers_at_start=4: a pipeline stage has 3 of the model's 6 layers, and Megatron takes no more "
        "than that; set at most 3."
    )


def test_a_disk_without_room_for_a_checkpoint(load, tmp_path):
    """In bfloat16 a parameter takes 14 bytes in a checkpoint and 2 in the export. The model is far too large."""
    config = load(f'run.folder="{tmp_path}"')
    with pytest.raises(ConfigError) as refused:
        check_disk(config, dataclasses.replace(SHAPE, ffn_hidden_size=10**15))
    message = (
        rf"run\.folder={tmp_path}: its disk has [0-9.]+ GB free, but two checkpoints of this model take (\d+)\.\d\d "
        r"GB, its export as a Hugging Face folder (\d+)\.\d\d; make room, or name a folder on another disk\."
    )
    found = re.fullmatch(message, str(refused.value))
    assert found and int(found[1]) == pytest.approx(14 * int(found[2]))
    (tmp_path / "checkpoints/step-000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"GB free, but a checkpoint of this model takes \d+\.\d\d GB, its export"):
        check_disk(config, dataclasses.replace(SHAPE, ffn_hidden_size=10**15))
    check_disk(config, SHAPE)


def test_a_folder_that_cannot_be_written(load):
    with pytest.raises(OSError):
        check_disk(load('run.folder="/proc"'), SHAPE)
