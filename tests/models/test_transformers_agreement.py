import json

import pytest

from megatron_rapo.config import ConfigError
from megatron_rapo.models import check_agreement, read_shape
from tests.tiny_models import save_tiny_model

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree(tmp_path, family):
    folder = save_tiny_model(tmp_path, tied=True, family=family)
    check_agreement(folder, read_shape(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_as_transformers_4_wrote_it(tmp_path, family):
    folder = save_tiny_model(tmp_path, tied=True, family=family)
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "layer_types", "dtype", "pad_token_id"):
        config.pop(name, None)
    config |= {"rope_theta": 1000000, "rope_scaling": None, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-05}
    (folder / "config.json").write_text(json.dumps(config))
    shape = read_shape(folder)
    assert (shape.rope_theta, shape.norm_eps) == (1e6, 1e-5)
    check_agreement(folder, shape)


def refusal(folder):
    with pytest.raises(ConfigError) as refused:
        check_agreement(folder, read_shape(folder))
    return str(refused.value)


def test_a_default_that_is_another_here(tmp_path):
    folder = save_tiny_model(tmp_path, tied=True, family="qwen3")
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    assert refusal(folder) == (
        f"model.path={folder}: the engine reads head_dim=128 from config.json and the trainer 32; write head_dim into "
        "the file."
    )


@pytest.mark.parametrize("changes", [{"model_type": 7}, {"model_type": "none"}, {"layer_types": "full_attention"}])
def test_what_transformers_cannot_read(edited, changes):
    folder = edited(**changes)
    message = refusal(folder)
    reads = "transformers, which reads config.json for the engine, cannot read it ("
    assert message.startswith(f"model.path={folder}: {reads}")
    assert message.endswith("); take the model's own file.") and "\n" not in message and len(message) < 500
