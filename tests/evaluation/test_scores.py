import json

import numpy as np
import pytest

from megatron_rapo.evaluation.scores import FORMAT, ProblemScore, Scores, ScoresError
from tests.evaluation.known import right_of, sampled, scores_of

PROBLEMS = [ProblemScore.of(each) for each in sampled()]


def test_a_problem_by_hand():
    assert PROBLEMS[0].model_dump() == {
        "id": "a",
        "problem": "1+1=",
        "answer": "2",
        "correct": 2,
        "votes": ({"answer": "2", "count": 2, "right": True}, {"answer": "3", "count": 1, "right": False}),
        "verdicts": {"correct": 2, "wrong": 1, "no_answer": 1},
        "completion_tokens": 1 + 2 + 3 + 4,
        "truncated": 0,
    }
    assert [(vote.answer, vote.count) for vote in PROBLEMS[1].votes] == [("3", 2), ("?!", 1)]


def test_scores_by_hand():
    found = scores_of(PROBLEMS, 4, (1, 2, 4))
    means = {name: score.value for name, score in found.scores.items()}
    assert list(means) == ["avg", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert means["avg"] == means["pass@1"] == pytest.approx((2 / 4 + 0 + 1) / 3)
    assert means["pass@2"] == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert means["pass@4"] == pytest.approx((1 + 0 + 1) / 3)
    # Pairs of a's answers 2, 2, 3 and none: right in 22, 2-, 2-, and with a chance of 1/2 in 23, 23.
    assert means["maj@2"] == pytest.approx((4 / 6 + 0 + 1) / 3, abs=0.02)
    assert means["maj@4"] == pytest.approx((1 + 0 + 1) / 3)
    assert found.k == (1, 2, 4)
    assert found.completion_tokens == pytest.approx(2.5) and found.truncated == pytest.approx(3 / 12)
    assert found.verdicts == {"correct": 6, "wrong": 2, "unevaluated": 0, "no_answer": 2, "unparsable": 1, "timeout": 1}


def test_an_interval_by_hand():
    """One of two problems is solved, so a resample's mean is 0 or 1 with a chance of 1/4 each."""
    found = right_of(2, 0, 2, k=(1, 2)).scores
    assert all((score.value, score.interval) == (0.5, (0.0, 1.0)) for score in found.values())
    assert right_of(4, 1, 1, 1).scores["pass@1"].interval == (0.25, 0.25)


def test_the_same_counts_give_the_same_interval():
    counts = np.random.default_rng(0).integers(0, 5, 30).tolist()
    one, other = right_of(4, *counts, k=(1, 4)).scores["pass@1"], right_of(4, *counts, k=(4, 1)).scores["pass@1"]
    assert one == other and one.interval[0] < one.value < one.interval[1]


def test_what_is_watched_while_a_run_goes_on():
    found = scores_of(PROBLEMS, 4, (1, 4)).scalars()
    assert list(found) == ["pass@1", "pass@4", "maj@4", "completion_tokens", "truncated"]
    assert found["pass@1"] == pytest.approx(0.5) and found["completion_tokens"] == 2.5


# --- the file ---


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "deep" / "scores.json"
    scores = scores_of(PROBLEMS, 4, (1, 2, 4), left_out=2)
    scores.save(path)
    assert Scores.read(path) == scores
    content = json.loads(path.read_text())
    assert list(content)[:5] == ["format", "model", "data", "left_out", "sampled_with"]
    assert (content["format"], content["left_out"], content["scores"]["pass@4"]["value"]) == (FORMAT, 2, 2 / 3)
    assert sum('"votes"' in line for line in path.read_text().splitlines()) == 3  # a problem a line
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_every_number_follows_from_the_problems(tmp_path):
    """Scores at any k can be computed from a file."""
    path = tmp_path / "scores.json"
    right_of(4, 0, 1, 2, 4, k=(1,)).save(path)
    read = Scores.read(path)
    assert (
        scores_of(read.problems, read.samples_per_problem, (1, 2, 4)).scores
        == right_of(4, 0, 1, 2, 4, k=(1, 2, 4)).scores
    )


def test_a_file_that_cannot_be_replaced_stays_whole(tmp_path):
    path = tmp_path / "scores.json"
    right_of(2, 1).save(path)
    before = path.read_text()
    (tmp_path / "scores.json.partial").mkdir()
    with pytest.raises(ScoresError, match=r"scores\.json: \[Errno 21\] Is a directory"):
        right_of(2, 2).save(path)
    assert path.read_text() == before


GIVE = "name a .json file of scores that `evaluate --output` wrote beside its samples."


def refusal_of(path):
    with pytest.raises(ScoresError) as refused:
        Scores.read(path)
    return str(refused.value).removeprefix(f"{path}: ")


def test_no_file(tmp_path):
    assert refusal_of(tmp_path / "none.json") == f"cannot be read (No such file or directory); {GIVE}"
    assert refusal_of(tmp_path) == f"cannot be read (Is a directory); {GIVE}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", f"not JSON (Expecting value: line 1 column 1 (char 0)); {GIVE}"),
        (b'{"a": 1}\n{"b": 2}\n', f"not JSON (Extra data: line 2 column 1 (char 9)); {GIVE}"),  # the samples
        (b"\xff\xfe", f"not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); {GIVE}"),
        (b"[1, 2]", f"format=None: not 'megatron_rapo scores 2'; {GIVE}"),
        (
            b'{"format": "megatron_rapo evaluation 1"}',
            f"format='megatron_rapo evaluation 1': not 'megatron_rapo scores 2'; {GIVE}",
        ),
    ],
)
def test_another_file(tmp_path, content, words):
    path = tmp_path / "base.json"
    path.write_bytes(content)
    assert refusal_of(path) == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("problems"), "problems: is missing"),
        (lambda c: c.update(problems=[]), "problems=[]: tuple should have at least 1 item after validation, not 0"),
        (lambda c: c["problems"][1].update(correct=3), "problems.1.correct=3: more than samples_per_problem=2"),
        (lambda c: c["problems"][1]["votes"][0].update(count=3), "problems.1.votes=3: more than samples_per_problem=2"),
        (lambda c: c["problems"][1].update(correct=-1), "problems.1.correct=-1: input should be greater than or equal"),
        (lambda c: c["problems"][1].update(correct="1"), "problems.1.correct='1': input should be a valid integer"),
        (
            lambda c: c.update(samples_per_problem=0),
            "samples_per_problem=0: input should be greater than or equal to 1",
        ),
        (lambda c: c.update(note="mine"), "note='mine': extra inputs are not permitted"),
    ],
)
def test_a_changed_file(tmp_path, change, words):
    path = tmp_path / "base.json"
    right_of(2, 0, 1).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    found = refusal_of(path)
    assert found.startswith(words) and found.endswith("; write it again with evaluate --output.")
