"""The arithmetic corpus, its splits, and the small model that is kept in the repository."""

import json
import random
import re
from pathlib import Path

import pytest

import tiny_corpus
from tiny_corpus import Habits, Problem, Step, correct_step, make_splits, student_attempts, worked_solution

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PRINTABLE = "".join(map(chr, range(32, 127)))


def problem(multiplicand: int, multiplier: int, addend: int) -> Problem:
    return Problem(multiplicand=multiplicand, multiplier=multiplier, addend=addend)


@pytest.mark.parametrize(
    ("given", "solution"),
    [
        (problem(37, 6, 58), r"30*6=180,7*6=42,180+42=222,222+58=280 \boxed{280}"),
        (problem(11, 2, 10), r"10*2=20,1*2=2,20+2=22,22+10=32 \boxed{32}"),
        (problem(40, 7, 35), r"40*7=280,0*7=0,280+0=280,280+35=315 \boxed{315}"),
        (problem(99, 9, 99), r"90*9=810,9*9=81,810+81=891,891+99=990 \boxed{990}"),
    ],
)
def test_worked_solution_by_hand(given: Problem, solution: str) -> None:
    assert worked_solution(given) == solution
    assert tiny_corpus.is_correct(given, solution)


def test_prompt_and_answer() -> None:
    assert problem(37, 6, 58).prompt == "37*6+58\n"
    assert problem(37, 6, 58).answer == "280"


def test_carried_columns() -> None:
    assert tiny_corpus.carried_columns(222, 58) == [1]
    assert tiny_corpus.carried_columns(180, 42) == [10]
    assert tiny_corpus.carried_columns(567, 78) == [1, 10]
    assert tiny_corpus.carried_columns(99, 1) == [1, 10]
    assert tiny_corpus.carried_columns(120, 35) == []


@pytest.mark.parametrize(
    ("slip", "step", "outcomes"),
    [
        (tiny_corpus.drop_carry, correct_step(222, "+", 58), {"222+58=270"}),
        (tiny_corpus.drop_carry, correct_step(567, "+", 78), {"567+78=635", "567+78=545"}),
        (tiny_corpus.miss_by_ten, correct_step(7, "*", 6), {"7*6=32", "7*6=52"}),
        (tiny_corpus.miss_by_ten, correct_step(1, "*", 2), {"1*2=12"}),
        (tiny_corpus.misread_digit, correct_step(222, "+", 58), {"222+57=279", "222+59=281"}),
        (tiny_corpus.misread_digit, correct_step(300, "+", 40), {"300+41=341"}),
        (tiny_corpus.confuse_table, correct_step(7, "*", 6), {"7*6=36", "7*6=48"}),
    ],
)
def test_slips_by_hand(slip: tiny_corpus.Slip, step: Step, outcomes: set[str]) -> None:
    rng = random.Random(0)
    assert {slip(step, rng).text for _ in range(50)} == outcomes


def test_a_certain_slip_spoils_every_step() -> None:
    given = problem(37, 6, 58)
    careless = Habits(slip=1.0, no_box=1.0)
    for seed in range(50):
        working = tiny_corpus.solution(given, careless, random.Random(seed))
        assert "boxed" not in working
        first, second = working.split(",")[:2]
        assert first != "30*6=180" and second != "7*6=42"


def test_wrong_results_are_carried_on() -> None:
    careless = Habits(slip=0.5, no_box=0.0)
    for seed in range(50):
        working = tiny_corpus.solution(problem(37, 6, 58), careless, random.Random(seed))
        _, results = zip(*re.findall(r"([^=,]+)=(\d+)", working), strict=True)
        assert f",{results[2]}+" in working
        assert working.endswith(rf"\boxed{{{results[3]}}}")


def test_rates_of_slips_and_forgotten_boxes() -> None:
    problems = make_splits(seed=0, num_rl_train=10, num_heldout=10).pretrain
    habits = Habits(slip=0.2, no_box=0.3)
    attempts = list(student_attempts(problems, habits=habits, seed=0, num_attempts=4000))
    boxed = sum("boxed" in text for _, text in attempts) / len(attempts)
    flawless = sum(worked_solution(given).startswith(text.split()[0]) for given, text in attempts)
    flawless /= len(attempts)
    assert boxed == pytest.approx(0.7, abs=0.03)
    assert flawless == pytest.approx(0.8**4, abs=0.03)


def test_seeds_decide_the_corpus() -> None:
    def corpus(seed: int) -> list[tuple[Problem, str]]:
        splits = make_splits(seed=seed, num_rl_train=10, num_heldout=10)
        return list(student_attempts(splits.pretrain, habits=Habits(), seed=seed, num_attempts=200))

    assert corpus(0) == corpus(0)
    assert corpus(0) != corpus(1)


def test_splits_are_disjoint_and_complete() -> None:
    splits = make_splits(seed=3, num_rl_train=4000, num_heldout=200)
    assert (len(splits.rl_train), len(splits.heldout)) == (4000, 200)
    everything = splits.pretrain + splits.rl_train + splits.heldout
    assert len(everything) == len(set(everything)) == 89 * 8 * 90


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"slip=1\.5: a probability"):
        Habits(slip=1.5)
    with pytest.raises(ValueError, match="only 64080 problems, "):
        make_splits(seed=0, num_rl_train=64_000, num_heldout=80)


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        (r"222+58=280 \boxed{280}", True),
        (r"\boxed{270} \boxed{280}", True),
        (r"\boxed{280} \boxed{270}", False),
        (r"\boxed{0280}", False),
        ("222+58=280", False),
        (r"\boxed{280", False),
    ],
)
def test_is_correct(completion: str, correct: bool) -> None:
    assert tiny_corpus.is_correct(problem(37, 6, 58), completion) is correct


def read_pairs(name: str) -> list[tuple[str, str]]:
    return [tuple(json.loads(line).values()) for line in (TINY / name).read_text().splitlines()]


def test_committed_problems_are_the_recipe_s() -> None:
    seed = json.loads((TINY / "model_card.json").read_text())["recipe"]["seed"]
    splits = make_splits(seed=seed, num_rl_train=4000, num_heldout=200)
    assert read_pairs("train.jsonl") == [(given.text, given.answer) for given in splits.rl_train]
    assert read_pairs("heldout.jsonl") == [(given.text, given.answer) for given in splits.heldout]


def test_readme_quotes_the_card() -> None:
    heldout = json.loads((TINY / "model_card.json").read_text())["heldout"]
    names = ("pass@1", "pass@4", "pass@16", "greedy_accuracy", "boxed_fraction")
    row = "| " + " | ".join(f"{heldout[name]:.4f}" for name in names) + " |"
    assert row in (TINY / "README.md").read_text()


def test_committed_tokenizer_round_trips() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY / "model")
    text = PRINTABLE + "\n\n  two  spaces , don 't . \n" + PRINTABLE[::-1]
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("12\n") == [20, 21, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    assert len(tokenizer) == 98


def test_committed_model_loads_and_solves_a_problem() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY / "model")
    card = json.loads((TINY / "model_card.json").read_text())
    assert model.num_parameters() == card["num_parameters"] == 997_760
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(tokenizer)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)

    given = problem(37, 6, 58)
    inputs = tokenizer(given.prompt, return_tensors="pt")["input_ids"]
    output = model.generate(inputs, do_sample=False, max_new_tokens=80)[0]
    assert output[-1] == 1
    assert tokenizer.decode(output[inputs.shape[1] :], skip_special_tokens=True) == worked_solution(given)
