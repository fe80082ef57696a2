"""The user's reward functions: how they are found, and what is refused before and during a run."""

import sys
from pathlib import Path

import numpy as np
import pytest

from examples import custom_reward
from megatron_rapo.config import RewardConfig
from megatron_rapo.rewards import Rewards
from megatron_rapo.runtime.user_code import UserCodeError
from megatron_rapo.types import Completion, Outcome, Problem, Verdict
from tests.settings import MINIMAL

PROBLEM = Problem(id="train-3", text="2+2=", answer="4", extra={"bonus": 0.25})
VERDICT = Verdict(outcome=Outcome.CORRECT, formatted=True)
ROOT = Path(__file__).parents[2]
SOURCE = """
from collections import Counter

constant = 3

def bonus(problem, completion, verdict):
    return problem.extra["bonus"] * verdict.formatted

def two(problem, completion): return 0.0

async def later(problem, completion, verdict): return 0.0

class Stateful:
    def __init__(self): self.calls = 0
    def __call__(self, problem, completion, verdict, *, scale=1.0):
        self.calls += 1
        return scale * self.calls / 10

stateful = Stateful()
"""


def completion(tokens=(1, 2, 3), text="4"):
    return Completion(
        token_ids=np.array(tokens, np.int32), logprobs=np.zeros(len(tokens), np.float32), text=text, truncated=False
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def rewards(reference, value_range=(0.0, 1.0), weight=1.0):
    function = {"name": "own", "function": str(reference), "range": value_range, "weight": weight}
    return Rewards.load(RewardConfig.model_validate({"functions": [function]}))


def own_term(loaded):
    return loaded.terms(PROBLEM, completion(), VERDICT)["own"]


def test_of_a_file_by_its_weight(file):
    assert own_term(rewards(f"{file}:bonus", weight=2.0)) == 0.5


def test_an_object_keeps_its_state(file):
    loaded = rewards(f"{file}:stateful")
    assert [own_term(loaded), own_term(loaded)] == [0.1, 0.2]


def test_of_a_module(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    assert own_term(rewards("mine:bonus")) == 0.25
    monkeypatch.delitem(sys.modules, "mine")


def test_of_an_entry_point(file, monkeypatch):
    metadata = file.parent / "my_rewards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rewards\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[megatron_rapo.rewards]\ngood = mine:bonus\n")
    monkeypatch.syspath_prepend(file.parent)
    assert own_term(rewards("good")) == 0.25
    monkeypatch.delitem(sys.modules, "mine")
    with pytest.raises(UserCodeError) as refused:
        rewards("better")
    assert str(refused.value) == (
        "reward.functions.0.function='better': no installed package has this entry point in the group "
        "megatron_rapo.rewards (found: good); write FILE.py:FUNCTION or MODULE:FUNCTION, or install the package."
    )


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("{folder}/none.py:f", "no such file {folder}/none.py (from {here}); check the path."),
        ("{folder}/mine.py:nine", "has no 'nine'; use one of its functions: bonus, two, later."),
        ("{folder}/mine.py:", "has no ''; use one of its functions: bonus, two, later."),
        ("{folder}/mine.py:constant", "is 3, which cannot be called; name a function."),
        (
            "{folder}/mine.py:two",
            "cannot be called with (problem, completion, verdict): too many positional arguments; give it these "
            "parameters.",
        ),
        ("{folder}/mine.py:later", "is asynchronous, but nothing would await it; write a plain function."),
        ("{folder}/torn.py:f", "does not load (ZeroDivisionError: division by zero); fix it."),
        ("{folder}/ends.py:f", "does not load (SystemExit: 0); fix it."),
        ("no_such_module:f", "does not load (ModuleNotFoundError: No module named 'no_such_module'); fix it."),
    ],
)
def test_what_does_not_load_is_refused(file, reference, said):
    (file.parent / "torn.py").write_text("1 / 0\n")
    (file.parent / "ends.py").write_text("import sys\nsys.exit(0)\n")
    places = {"folder": file.parent, "here": Path.cwd()}
    reference = reference.format(**places)
    with pytest.raises(UserCodeError) as refused:
        rewards(reference)
    assert str(refused.value) == f"reward.functions.0.function={reference!r}: {said.format(**places)}"


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (
            "1.5",
            "returned 1.5 for problem 'train-3', outside its declared range [0.0, 1.0]; fix the function, or declare "
            "the range that it really has.",
        ),
        (
            "float('nan')",
            "returned nan for problem 'train-3', outside its declared range [0.0, 1.0]; fix the function, or declare "
            "the range that it really has.",
        ),
        ("'0.5'", "returned '0.5' for problem 'train-3', which is not a number; return a float."),
        ("None", "returned None for problem 'train-3', which is not a number; return a float."),
    ],
)
def test_what_it_must_not_give_is_refused(tmp_path, expression, said):
    path = tmp_path / "mine.py"
    path.write_text(f"def f(*arguments): return {expression}\n")
    loaded = rewards(f"{path}:f")
    with pytest.raises(UserCodeError) as refused:
        own_term(loaded)
    assert str(refused.value) == f"reward.functions: own ({path}:f) {said}"


@pytest.mark.parametrize("expression", ["1", "True", "__import__('numpy').float32(1)", "0.0 + 1"])
def test_any_real_number_is_taken(tmp_path, expression):
    path = tmp_path / "mine.py"
    path.write_text(f"def f(*arguments): return {expression}\n")
    assert own_term(rewards(f"{path}:f")) == 1.0


def test_what_it_raises_is_told_with_the_problem(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def f(problem, completion, verdict): return problem.extra['weight']\n")
    loaded = rewards(f"{path}:f")
    with pytest.raises(RuntimeError) as raised:
        own_term(loaded)
    assert str(raised.value) == f"reward.functions: own ({path}:f) failed on problem 'train-3': KeyError: 'weight'"
    assert isinstance(raised.value.__cause__, KeyError)


def test_one_that_ends_the_program_has_failed(tmp_path):
    """Otherwise the run would look finished, with status 0."""
    path = tmp_path / "mine.py"
    path.write_text("import sys\ndef f(problem, completion, verdict): sys.exit(0)\n")
    loaded = rewards(f"{path}:f")
    with pytest.raises(RuntimeError) as raised:
        own_term(loaded)
    assert str(raised.value) == f"reward.functions: own ({path}:f) failed on problem 'train-3': SystemExit: 0"


# --- the example ---


def test_the_example_as_its_documentation_says(load, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = (custom_reward.__doc__ or "").splitlines()
    config = load(text=MINIMAL + "\n".join(line for line in lines if line.startswith("    "))).reward
    assert config.range == (-0.2, 1.1)
    terms = Rewards.load(config).terms(PROBLEM, completion(range(16), r"The answer is \boxed{4}"), VERDICT)
    assert terms == {"correctness": 1.0, "format": 0.0, "repetition": 0.0, "says_so": 0.1}


def test_the_examples_values_by_hand():
    looping = completion([*range(16)] * 2)  # 17 runs, the last of which is the first
    assert custom_reward.repetition(PROBLEM, looping, VERDICT) == pytest.approx(-1 / 17)
    assert custom_reward.repetition(PROBLEM, completion([7] * 116), VERDICT) == pytest.approx(-100 / 101)
    assert custom_reward.repetition(PROBLEM, completion([7] * 15), VERDICT) == 0.0
    assert custom_reward.says_so(PROBLEM, completion(text=r"\boxed{4} is it, the answer is"), VERDICT) == 0.0
