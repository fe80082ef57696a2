"""Fixtures of tests all over the tree."""

import pytest

from megatron_rapo.config.file import load_config
from tests.settings import MINIMAL


@pytest.fixture
def load(tmp_path):
    """load(overrides..., text=...): what load_config makes of the file."""

    def load(*overrides, text=MINIMAL):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return load_config(path, overrides)

    return load
