import json

import pytest

from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(
        tmp_path_factory.mktemp("models") / "untied", tied=False, vocab_size=131, num_kv_heads=1, intermediate_size=160
    )


@pytest.fixture
def edited(model, tmp_path):
    """Return edited(key=value, ...): a folder with these values in config.json. None removes the key."""

    def edit(**changes):
        config = json.loads((model / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return edit
