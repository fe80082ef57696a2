"""The examples of docs/extending.md, each as its page says: written to a file, named in a setting, used."""

import re
from pathlib import Path

import pytest
import torch

from megatron_rapo.audit.measure import audit
from megatron_rapo.data import render, template_of
from megatron_rapo.monitor import Recorder, check_writers
from megatron_rapo.scoring.objective import reference_exponents, to_sequences
from megatron_rapo.scoring.objective_registry import check_algorithm, divergence_of
from tests.scoring.test_objective import GROUPS
from tests.settings import MINIMAL

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text()
PYTHON = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.S)
TOML = re.findall(r"```toml\n(.*?)```", PAGE, re.S)


@pytest.fixture
def config(load, tmp_path, monkeypatch):
    """config(name): with the settings of the example that names this file."""
    monkeypatch.chdir(tmp_path)
    for name, source in PYTHON:
        (tmp_path / name).write_text(source)

    def of_example(name):
        (settings,) = [text for text in TOML if f'"{name}:' in text]
        section = settings.partition("\n")[0]
        others = MINIMAL.replace('[data]\ntrain = "train.jsonl"\n', "") if section == "[data]" else MINIMAL
        return load(text=others + settings)

    return of_example


def test_every_example_has_its_setting():
    assert len(PYTHON) == len(TOML) == PAGE.count("```") // 4
    assert all(any(f'"{name}:' in text for text in TOML) for name, _ in PYTHON)


def test_a_divergence(config):
    example = config("my_divergence.py")
    check_algorithm(example.algorithm)
    found = audit(example.algorithm, example.reward)
    assert found.agrees and found.named == found.nearest == "forward_kl"
    logp_T, ref_logp_T = torch.tensor([-1.0]), torch.tensor([-1.0]).exp().mul(2).log()  # rho = 2
    penalty = divergence_of(example.algorithm.divergence).estimate(logp_T, ref_logp_T, 10.0)
    torch.testing.assert_close(penalty.loss_T, torch.tensor([2.0]))


def test_an_advantage(config):
    example = config("my_advantage.py")
    check_algorithm(example.algorithm)
    found = [each.advantage for each in to_sequences(GROUPS, example)]  # rewards 1, 0 and 0, 1/2
    assert found == [1.0, -1.0, -1.0, 1.0]


def test_a_writer(config, tmp_path):
    names = config("my_writer.py").monitor.writers
    check_writers(names)
    with Recorder(tmp_path / "run", writers=names) as recorder:
        recorder.log(1, {"reward/mean": 0.25})
        recorder.log(1, {"policy/kl": 0.5})
        recorder.log(2, {"reward/mean": 0.75})
    assert (tmp_path / "run/rewards.txt").read_text() == "1 0.25\n2 0.75\n"
    assert (tmp_path / "run/tensorboard").is_dir()


def test_a_shape_of_phi(config):
    example = config("my_phi.py")
    check_algorithm(example.algorithm)
    found = [each.phi for each in to_sequences(GROUPS, example)]  # rewards 1, 0, 0 and 1/2, of 0 to 1
    assert found == pytest.approx([1.0, 0.9, 0.9, 0.9])
    rewards = torch.tensor([0.75], dtype=torch.float64)
    assert reference_exponents(rewards, example.algorithm, example.reward).item() == pytest.approx(0.95)


def test_a_template(config):
    template = template_of(config("my_template.py").data.template)
    assert render(template, ["2 + 2"], None) == ["Q: 1 + 1\nA: \\boxed{2}\n\nQ: 3 * 4\nA: \\boxed{12}\n\nQ: 2 + 2\nA:"]
    assert template.stop == ("Q:",)
