import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.models import ModelShape, read_shape
from tests.qwen2_5 import QWEN2_5
from tests.tiny_models import save_tiny_model


def refusal(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as raised:
        call(*arguments, **keywords)
    return str(raised.value)


@pytest.mark.parametrize("tied", [True, False])
def test_shape_of_a_saved_model(tmp_path, tied):
    folder = save_tiny_model(
        tmp_path,
        tied=tied,
        vocab_size=131,
        hidden_size=128,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=160,
        max_positions=512,
    )
    assert read_shape(folder) == ModelShape(
        architecture="Qwen2ForCausalLM",
        num_layers=3,
        hidden_size=128,
        ffn_hidden_size=160,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=131,
        tied=tied,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        max_position=512,
    )


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"rms_norm_eps": 1e-5}, "norm_eps", 1e-5),
        ({"num_key_value_heads": None}, "num_kv_heads", 2),  # as many as heads
        ({"head_dim": 48}, "head_dim", 48),
        ({"rope_parameters": {"partial_rotary_factor": None, "rope_theta": 1e5}}, "rope_theta", 1e5),
        ({"tie_word_embeddings": None}, "tied", False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta", 1e6),
        ({"rope_parameters": None, "rope_theta": 1000000}, "rope_theta", 1e6),  # as transformers 4 wrote it
        ({"rope_parameters": None}, "rope_theta", 1e4),
    ],
)
def test_settings_that_may_be_left_out_or_changed(edited, changes, field, expected):
    assert getattr(read_shape(edited(**changes)), field) == expected


def test_cost_of_a_sequence():
    """Qwen2.5-7B has 6.525e9 weights in the linears of its layers and 0.545e9 in its output layer."""
    shape = QWEN2_5["7B"]
    assert shape.sequence_cost(0) == 0.0
    assert shape.sequence_cost(1000) == pytest.approx(1000 + 28 * 3584 * 1000**2 / 7.070e9, rel=1e-5)
    assert shape.sequence_cost(8000) == pytest.approx(8000 + 64 * (shape.sequence_cost(1000) - 1000), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type=yarn {} in ['default']"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope type=linear {} in ['default']"),
        ({"use_sliding_window": True}, "use_sliding_window=True {} in [False]"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu {} in ['silu']"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(edited, changes, said):
    name = said.partition("=")[0]
    folder = edited(**changes)
    between = f"is not implemented and would be trained wrongly; use a model with {name}"
    assert refusal(read_shape, folder) == f"model.path={folder}: {said.format(between)}."


@pytest.mark.parametrize(
    ("architectures", "named"), [(["GemmaForCausalLM"], "GemmaForCausalLM"), ([], "(none)"), (None, "(none)")]
)
def test_unsupported_architecture(edited, architectures, named):
    folder = edited(architectures=architectures)
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: architecture {named} is not supported; supported: LlamaForCausalLM, MistralForCausalLM, "
        "Qwen2ForCausalLM, Qwen3ForCausalLM. To add one, describe it in models/families.py (docs/adding_a_model.md "
        "shows how)."
    )


def test_no_folder(tmp_path):
    folder = tmp_path / "none"
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: no such folder; give a folder with config.json and *.safetensors."
    )


def test_no_config(tmp_path):
    assert refusal(read_shape, tmp_path) == (
        f"model.path={tmp_path}: holds no config.json; give a Hugging Face model folder."
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"architectures": ', "not valid JSON (Expecting value, line 1, column 19); correct the file, or copy"),
        (b"\xff\xff", "not UTF-8 (byte 0); correct the file, or copy the model's own again."),
        (b"[1, 2]", "not a JSON object; correct the file, or copy the model's own again."),
    ],
)
def test_broken_config(tmp_path, content, said):
    (tmp_path / "config.json").write_bytes(content)
    assert refusal(read_shape, tmp_path).startswith(f"{tmp_path / 'config.json'}: {said}")


@pytest.mark.parametrize(
    "missing",
    [
        ["num_hidden_layers"],
        ["hidden_size"],
        ["intermediate_size"],
        ["num_attention_heads"],
        ["vocab_size"],
        ["max_position_embeddings"],
        ["hidden_size", "vocab_size"],
    ],
)
def test_config_without_a_number_that_it_needs(edited, missing):
    folder = edited(**dict.fromkeys(missing))
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: config.json has no number for {', '.join(missing)}; take the model's own file."
    )


def test_config_with_text_for_a_number(edited):
    assert "config.json has no number for hidden_size; " in refusal(read_shape, edited(hidden_size="64"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0: input should be greater than or equal to 1"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000: input should be less than or equal to 1000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1: input should be greater than or equal to 1"),
        ({"vocab_size": 10**3000}, f"vocab_size=1{'0' * 79}... (3,001 characters): input should be less than or equal"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: does not divide num_attention_heads=2"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0: input should be greater than or equal to 1"),
        ({"head_dim": 33}, "head_dim=33: is odd, and rotary positions turn pairs"),
        ({"head_dim": None, "hidden_size": 65}, "num_attention_heads=2: does not divide hidden_size=65"),
        (
            {"num_hidden_layers": 1000, "num_attention_heads": 1024, "num_key_value_heads": 1024},
            "num_hidden_layers x num_key_value_heads=1,024,000: above the limit of 65,536",
        ),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no': input should be a valid boolean"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1: input should be a valid boolean"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0: input should be greater than 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan: input should be a finite number"),
        ({"rope_parameters": [1]}, "rope_parameters=[1]: input should be a valid dictionary"),
        ({"rope_parameters": {"rope_theta": "10"}}, "rope_theta='10': not a number from 1 to 1e12"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta=inf: not a number from 1 to 1e12"),
        ({"rope_parameters": None, "rope_theta": 0}, "rope_theta=0.0: not a number from 1 to 1e12"),
    ],
)
def test_numbers_that_no_model_has(edited, changes, said):
    folder = edited(**changes)
    message = refusal(read_shape, folder)
    assert message.startswith(f"model.path={folder}: config.json has {said}")
    assert message.endswith("; take the model's own file.")


@pytest.mark.parametrize("value", [64.0, True, [64], {"a": 1}, "64", None])
def test_config_with_another_type_for_a_number(edited, value):
    assert "config.json has no number for vocab_size; " in refusal(read_shape, edited(vocab_size=value))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope type=['default']"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"hidden_act": {"a": 1}}, "hidden_act={'a': 1}"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=sliding_attention"),
    ],
)
def test_other_mathematics_of_any_type(edited, changes, said):
    folder = edited(**changes)
    assert refusal(read_shape, folder).startswith(f"model.path={folder}: {said} is not implemented and would be tr")


@pytest.mark.parametrize("architectures", [["x" * 10**6], [7], "LlamaForCausalLM2", {"a": 1}, [["Qwen2ForCausalLM"]]])
def test_architectures_of_any_type(edited, architectures):
    message = refusal(read_shape, edited(architectures=architectures))
    assert " is not supported; supported: LlamaForCausalLM, " in message and len(message) < 500


@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_quantised_weights(edited, name):
    folder = edited(**{name: {"quant_method": "fp8"}})
    assert refusal(read_shape, folder) == (
        f"model.path={folder}: config.json has a {name} (quant_method fp8), and quantised weights would be read "
        "without their scales; use the model's bfloat16 weights, or dequantise them."
    )


def test_a_config_of_gigabytes(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    assert refusal(read_shape, tmp_path) == (
        f"{tmp_path / 'config.json'}: has 1,099,511,627,776 bytes, and 67,108,864 is the limit; correct the file, or "
        "copy the model's own again."
    )
