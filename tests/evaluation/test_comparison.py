import json

import pytest

from megatron_rapo.data import load_problems
from megatron_rapo.evaluation.comparison import check_comparable, common_k, compare, save, save_hard
from megatron_rapo.evaluation.scores import ScoresError
from tests.evaluation.known import SAMPLED_WITH, evaluated, right_of


def compared(before, now, k=(1, 2)):
    return compare(evaluated(before), evaluated(now, "mine.json"), k)


def refusal(call, *arguments):
    with pytest.raises(ScoresError) as refused:
        call(*arguments)
    return str(refused.value)


def test_a_comparison_by_hand():
    """Four problems have n = 2. Their right answers before and now: 0 and 1, 1 and 0, 2 and 2, 0 and 0."""
    found = compared(right_of(2, 0, 1, 2, 0), right_of(2, 1, 0, 2, 0, model="runs/mine/hf"))
    assert (found.base, found.other, found.base_model, found.other_model) == (
        "base.json",
        "mine.json",
        "models/base",
        "runs/mine/hf",
    )
    assert found.samples_per_problem == (2, 2) and found.sampled_otherwise == ()
    assert list(found.metrics) == ["avg", "pass@1", "pass@2", "maj@2"]
    assert [(d.base, d.other, d.difference) for d in found.metrics.values()] == [
        (0.375, 0.375, 0.0),
        (0.375, 0.375, 0.0),
        (0.5, 0.5, 0.0),
        (0.5, 0.5, 0.0),
    ]
    solved = found.solved
    assert (solved.only_other, solved.lost, solved.both, solved.neither) == (("p0",), ("p1",), ("p2",), ("p3",))
    assert solved.p_value == 1.0


def test_an_interval_and_a_chance_by_hand():
    """One problem is gained, one lost. A resample has both with a chance of 1/2, or either of them twice with 1/4."""
    found = compared(right_of(2, 0, 1), right_of(2, 1, 0)).metrics
    assert found["pass@1"].interval == (-0.5, 0.5) and found["pass@2"].interval == (-1.0, 1.0)
    gained = compared(right_of(2, 0, 0, 0, 1), right_of(2, 1, 2, 1, 1))
    assert gained.metrics["pass@2"].p_value == gained.solved.p_value == 2 / 8  # three gained, none lost


def test_the_same_gain_on_every_problem_is_certain():
    found = compared(right_of(4, 0, 1, 2, 3), right_of(4, 1, 2, 3, 4), k=(1,)).metrics["pass@1"]
    assert found.difference == 0.25 and found.interval == (0.25, 0.25) and found.p_value == 2 / 16


def test_nothing_changed():
    same = right_of(4, 0, 1, 4)
    found = compared(same, same, k=(1, 4))
    assert all((d.difference, d.interval, d.p_value) == (0.0, (0.0, 0.0), 1.0) for d in found.metrics.values())
    solved = found.solved
    assert (solved.only_other, solved.lost, solved.both, solved.neither) == ((), (), ("p1", "p2"), ("p0",))


def test_other_numbers_of_samples_and_other_k():
    """The base has scores at k = 1 only. From its 4 samples pass@2 is 1 - C(3, 2) / C(4, 2)."""
    found = compared(right_of(4, 1), right_of(2, 1), k=(2,))
    assert found.samples_per_problem == (4, 2) and found.metrics["pass@2"].base == 0.5
    assert found.solved.p_value is None  # more samples are more chances


def test_the_hard_part_and_the_rest():
    """p0 and p3 are hard. Of their 4 samples the other model has 1 and 0 right."""
    found = compared(right_of(4, 0, 2, 4, 0), right_of(4, 1, 1, 4, 0), k=(1, 4))
    assert found.hard.problems == ("p0", "p3") and found.rest.problems == ("p1", "p2")
    assert all(score.value == 0 and score.interval == (0, 0) for score in found.hard.base.values())
    assert (found.hard.other["pass@1"].value, found.hard.other["pass@4"].value) == (1 / 8, 1 / 2)
    assert (found.rest.base["pass@1"].value, found.rest.other["pass@1"].value) == (3 / 4, 5 / 8)
    assert found.rest.other["pass@4"].interval == (1.0, 1.0)


@pytest.mark.parametrize(("counts", "missing"), [((1, 2), "hard"), ((0, 0), "rest")])
def test_a_part_without_problems(counts, missing):
    assert getattr(compared(right_of(2, *counts), right_of(2, *counts)), missing) is None


def judged_by(form, scores):
    return scores.model_copy(update={"sampled_with": {**scores.sampled_with, "answer": form}})


def test_other_forms_of_answers_are_not_compared():
    base, other = right_of(2, 1), judged_by("last_number", right_of(2, 2))
    assert refusal(check_comparable, evaluated(base), evaluated(other, "mine.json")) == (
        "mine.json: reward.answer=last_number, but base.json has boxed: they accept different answers, so a difference "
        "says nothing about the models; evaluate both with the same reward.answer."
    )
    older = base.model_copy(update={"sampled_with": {k: v for k, v in base.sampled_with.items() if k != "answer"}})
    check_comparable(evaluated(base), evaluated(older))  # from before there were other forms
    assert compared(older, base).sampled_otherwise == compared(base, older).sampled_otherwise == ()


def test_what_was_sampled_otherwise():
    other = {"temperature": 0.6, "template": "chat", "seed": 8, "weights": "00", "problems": "00"}
    with_other = right_of(4, 1).model_copy(update={"sampled_with": {**vars(SAMPLED_WITH), **other}})
    assert compared(right_of(4, 1), with_other).sampled_otherwise == (
        "template=plain and chat",
        "temperature=1.0 and 0.6",
    )


@pytest.mark.parametrize(
    ("mine", "how"),
    [
        (right_of(1, 0), "one is the start of the other"),
        (right_of(1, 0, 1, 1), "one is the start of the other"),
        (
            right_of(1, 0, 1).model_copy(update={"problems": right_of(1, 0, 1).problems[::-1]}),
            "problem 1 is 'p1' in one and 'p0' in the other, or its text differs",
        ),
    ],
)
def test_other_problems(mine, how):
    base = evaluated(right_of(1, 0, 1, left_out=5))
    assert refusal(check_comparable, base, evaluated(mine, "mine.json")) == (
        f"mine.json: has other problems ({len(mine.problems)} of held.jsonl, 0 more left out as too long) than "
        f"base.json (2 of held.jsonl, 5 more left out): {how}; evaluate both models on the same problems, with room "
        "for all of them in data.max_prompt_tokens."
    )


def test_the_same_problems_under_other_names():
    """Ids of problems may differ between files."""
    renamed = [problem.model_copy(update={"id": "copy"}) for problem in right_of(1, 0, 1).problems]
    check_comparable(
        evaluated(right_of(1, 0, 1)), evaluated(right_of(1, 0, 1).model_copy(update={"problems": tuple(renamed)}))
    )


def test_k():
    one, other = evaluated(right_of(8, 1, k=(1, 8))), evaluated(right_of(4, 1, k=(2, 4)), "mine.json")
    assert common_k([one, other]) == [1, 2, 4]
    assert common_k([one], [8, 2, 2]) == [2, 8]
    for chosen in ([1, 8], [0]):
        assert refusal(common_k, [one, other], chosen) == (
            f"--k {','.join(map(str, chosen))}: mine.json has 4 samples of each problem; choose from 1 to 4, or "
            "evaluate it again with more evaluation.samples_per_problem."
        )


# --- files ---


def test_what_is_written(tmp_path):
    path = tmp_path / "deep" / "comparison.json"
    found = compared(right_of(2, 0, 1), right_of(2, 1, 1))
    save([found], path)
    [content] = json.loads(path.read_text())
    assert content == found.model_dump(mode="json")
    assert content["format"] == "megatron_rapo comparison 1" and content["solved"]["only_other"] == ["p0"]


def test_the_hard_problems_are_a_data_file(tmp_path):
    path = tmp_path / "hard.jsonl"
    assert save_hard(evaluated(right_of(2, 0, 1, 0)), path) == 2
    assert [(p.id, p.text, p.answer) for p in load_problems(path)] == [("p0", "0+0=", "0"), ("p2", "2+2=", "4")]


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    base = evaluated(right_of(2, 0, 1))
    assert refusal(save_hard, base, tmp_path / "hard.csv") == (
        f"--hard {tmp_path}/hard.csv: writes JSON lines; name a file that ends in .jsonl."
    )
    assert refusal(save_hard, evaluated(right_of(2, 1)), tmp_path / "hard.jsonl") == (
        f"--hard {tmp_path}/hard.jsonl: base.json solves all problems, so there is none to write; leave it out."
    )
    assert refusal(save_hard, base, tmp_path / "file" / "h.jsonl").startswith(f"--hard {tmp_path}/file/h.jsonl: [Errno")
    assert refusal(save, [], tmp_path).startswith(f"--output {tmp_path}: [Errno 21] Is a directory")
