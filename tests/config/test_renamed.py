"""Settings under names of earlier versions: refused in a configuration, read in the files of a run."""

from __future__ import annotations

import pytest

from megatron_rapo.config import Config
from megatron_rapo.config.file import load_config
from megatron_rapo.config.renamed import RENAMED, with_present_names
from tests.settings import MINIMAL, refusal


@pytest.mark.parametrize(("earlier", "name"), RENAMED.items())
def test_an_earlier_name_is_refused_with_the_present_one(tmp_path, earlier, name):
    (tmp_path / "run.toml").write_text(MINIMAL)
    said = refusal(load_config, tmp_path / "run.toml", [f"{earlier}=4"])
    assert said == f"{earlier}=4: is now called {name}; write that name."


def test_present_names_are_settings_and_earlier_ones_are_not():
    def fields(names):
        return [field in Config.model_fields[section].annotation.model_fields for section, field in names]

    assert all(fields(name.split(".") for name in RENAMED.values()))
    assert not any(fields(name.split(".") for name in RENAMED))


def test_files_of_a_run_get_present_names():
    written = {"batch": {"refill_rounds": 2, "prompts_per_step": 8}, "evaluation": None}
    assert with_present_names(written) == {
        "batch": {"dynamic_sampling_rounds": 2, "prompts_per_step": 8},
        "evaluation": None,
    }
