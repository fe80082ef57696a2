import json
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_rapo.scores import Base, Evaluation, ScoresError, check_output, problem_digest
from tests.scores import GROUPS, SAMPLING, base, problem, right_of, saved

# --- an evaluation ---


def test_evaluation_by_hand():
    found = Evaluation.of(GROUPS, (1, 2, 4))
    assert list(found.pass_at) == [1, 2, 4]
    assert found.pass_at[1] == pytest.approx((2 / 4 + 0 + 1) / 3)
    assert found.pass_at[2] == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert found.pass_at[4] == pytest.approx((1 + 0 + 1) / 3)
    assert [(p.id, p.correct) for p in found.problems] == [("a", 2), ("b", 0), ("a", 4)]
    assert found.samples_per_problem == 4
    assert found.mean_completion_tokens == pytest.approx((10 + 40 + 6) / 12)
    assert found.truncated == pytest.approx(3 / 12)
    assert found.outcomes == {"correct": 6, "wrong": 2, "no_answer": 2, "unparsable": 1, "timeout": 1}


def test_interval_by_hand():
    """Two problems, one solved: a resample's mean is 0 or 1 with a chance of 1/4 each."""
    found = right_of(2, 0, 2, k=(1, 2))
    assert found.pass_at == {1: 0.5, 2: 0.5}
    assert found.pass_at_interval == {1: (0.0, 1.0), 2: (0.0, 1.0)}
    assert right_of(4, 1, 1, 1).pass_at_interval == {1: (0.25, 0.25)}


def test_the_same_counts_give_the_same_interval():
    counts = np.random.default_rng(0).integers(0, 5, 30).tolist()
    one, other = right_of(4, *counts, k=(1, 4)), right_of(4, *counts, k=(4, 1))
    assert one.pass_at_interval == other.pass_at_interval
    low, high = one.pass_at_interval[1]
    assert low < one.pass_at[1] < high


def test_more_right_than_there_are_samples_is_refused():
    content = dict(right_of(2, 1, 2)) | {"samples_per_problem": 1}
    with pytest.raises(ValueError, match=r"problems\.1\.correct=2: more than samples_per_problem=1"):
        Evaluation(**content)


def test_a_problem_is_known_by_its_text_and_answer():
    digest = problem_digest(problem("a", "1+1=", "2"))
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert digest == problem_digest(problem("other file-7", "1+1=", "2"))
    others = [("1+1=", "3"), ("1+2=", "2"), ("1+1=2", ""), ("", "1+1=2")]
    assert len({digest, *(problem_digest(problem("a", *other)) for other in others)}) == 5


# --- the file ---


def test_the_file(tmp_path):
    path = tmp_path / "deep" / "scores.json"
    evaluation = saved(Evaluation.of(GROUPS[:1], (1, 4)), left_out=2)
    evaluation.save(path)
    content = json.loads(path.read_text())
    assert content == {
        "format": "megatron_rapo evaluation 1",
        "model": "models/base",
        "data": "held.jsonl",
        "left_out": 2,
        "sampling": {
            "template": "plain",
            "dtype": "float32",
            "temperature": 1.0,
            "top_p": 0.9,
            "max_completion_tokens": 96,
            "seed": 3,
        },
        "samples_per_problem": 4,
        "pass_at": {"1": 0.5, "4": 1.0},
        "pass_at_interval": {"1": [0.5, 0.5], "4": [1.0, 1.0]},
        "bootstrap": {"level": 0.95, "resamples": 2000, "seed": 0},
        "mean_completion_tokens": 2.5,
        "truncated": 0.0,
        "outcomes": {"correct": 2, "wrong": 1, "no_answer": 1, "unparsable": 0, "timeout": 0},
        "problems": [{"id": "a", "digest": problem_digest(problem("a")), "correct": 2}],
        "comparison": None,
    }
    assert list(content)[:5] == ["format", "model", "data", "left_out", "sampling"]
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


@pytest.mark.parametrize("compared", [False, True])
def test_what_is_read_is_what_was_written(tmp_path, compared):
    path = tmp_path / "scores.json"
    evaluation = saved(right_of(4, 0, 1, 4, k=(1, 2, 4)))
    if compared:
        comparison = base(right_of(4, 1, 0, 4)).compare(evaluation)
        evaluation = saved(right_of(4, 0, 1, 4, k=(1, 2, 4)), comparison=comparison)
    evaluation.save(path)
    assert Base.read(path) == Base(path=path, scores=evaluation)


def test_every_number_follows_from_the_file(tmp_path):
    path = tmp_path / "scores.json"
    saved(right_of(4, 0, 1, 2, 4, k=(1, 2, 4))).save(path)
    read = Base.read(path).scores
    values_PK = read.problems_pass_at((1, 2, 4))
    assert dict(zip((1, 2, 4), values_PK.mean(axis=0).tolist(), strict=True)) == read.pass_at
    assert read.bootstrap.interval(values_PK, (1, 2, 4)) == read.pass_at_interval


def test_a_file_that_cannot_be_replaced_stays_whole(tmp_path):
    path = tmp_path / "scores.json"
    saved(right_of(2, 1)).save(path)
    before = path.read_text()
    (tmp_path / "scores.json.partial").mkdir()
    with pytest.raises(ScoresError) as refused:
        saved(right_of(2, 2)).save(path)
    assert str(refused.value) == f"--output {path}: cannot be written (Is a directory); name another file."
    assert path.read_text() == before


GIVE = "give a JSON file that `evaluate --output` wrote."


def refusal_of(path):
    with pytest.raises(ScoresError) as refused:
        Base.read(path)
    return str(refused.value).removeprefix(f"--compare {path}: ")


def test_no_file(tmp_path):
    assert refusal_of(tmp_path / "none.json") == f"no such file; {GIVE}"
    assert refusal_of(tmp_path) == f"cannot be read (Is a directory); {GIVE}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", f"not JSON (Expecting value: line 1 column 1 (char 0)); {GIVE}"),
        (b"[model]\n", f"not JSON (Expecting value: line 1 column 2 (char 1)); {GIVE}"),
        (b"\xff\xfe", f"not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); {GIVE}"),
        (b"[1, 2]", f'has no "format", so it holds something else; {GIVE}'),
        (b'{"pass@1": {"before": 0.3}}', f'has no "format", so it holds something else; {GIVE}'),
        (
            b'{"format": "megatron_rapo evaluation 9"}',
            f"format='megatron_rapo evaluation 9': not 'megatron_rapo evaluation 1'; {GIVE}",
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
        (lambda c: c.pop("problems"), "problems: not there"),
        (lambda c: c["sampling"].pop("seed"), "sampling.seed: not there"),
        (lambda c: c.update(problems=[]), "problems=[]: tuple should have at least 1 item after validation, not 0"),
        (lambda c: c["problems"][1].update(correct=3), "problems.1.correct=3: more than samples_per_problem=2"),
        (lambda c: c["problems"][1].update(correct=-1), "problems.1.correct=-1: input should be greater than or equal"),
        (lambda c: c["problems"][1].update(correct="1"), "problems.1.correct='1': input should be a valid integer"),
        (lambda c: c["problems"][1].update(correct=True), "problems.1.correct=True: input should be a valid integer"),
        (
            lambda c: c.update(samples_per_problem=0),
            "samples_per_problem=0: input should be greater than or equal to 1",
        ),
        (lambda c: c.update(note="mine"), "note='mine': extra inputs are not permitted"),
    ],
)
def test_a_changed_file(tmp_path, change, words):
    path = tmp_path / "base.json"
    saved(right_of(2, 0, 1)).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    found = refusal_of(path)
    assert found.startswith(words) and found.endswith("; write it again with evaluate --output.")


# --- where it may be written ---


def test_a_place_to_write_is_made(tmp_path):
    check_output(tmp_path / "a" / "b" / "scores.json", None)
    assert (tmp_path / "a" / "b").is_dir() and not any((tmp_path / "a" / "b").iterdir())


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("here before")
    for path, words in (
        (tmp_path, "is a folder; name a file in it."),
        (tmp_path / "file" / "scores.json", "cannot be written (File exists); name another file."),
        (tmp_path / "file" / "deep" / "scores.json", "cannot be written (Not a directory); name another file."),
    ):
        with pytest.raises(ScoresError) as refused:
            check_output(path, None)
        assert str(refused.value) == f"--output {path}: {words}"
    assert (tmp_path / "file").read_text() == "here before"


def test_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(ScoresError, match=r"--output .*: its folder is read-only; name a file in another\."):
        check_output(tmp_path / "scores.json", None)


def test_the_base_is_not_replaced(tmp_path):
    path = tmp_path / "base.json"
    saved(right_of(2, 1)).save(path)
    read = Base.read(path)
    (tmp_path / "link.json").symlink_to(path)
    for same in (path, tmp_path / "link.json"):
        with pytest.raises(ScoresError) as refused:
            check_output(same, read)
        assert str(refused.value) == (
            f"--output {same}: is the file of --compare, which would be replaced; name another."
        )
    saved(right_of(2, 2)).save(tmp_path / "other.json")
    check_output(tmp_path / "other.json", read)


# --- two of them ---


def test_a_comparison_by_hand():
    """Four problems at n = 2, right before and now: 0 and 1, 1 and 0, 2 and 2, 0 and 0."""
    found = base(right_of(2, 0, 1, 2, 0)).compare(right_of(2, 1, 0, 2, 0, k=(1, 2)))
    assert (found.file, found.model, found.sampling) == ("base.json", "models/base", SAMPLING)
    assert found.samples_per_problem == 2
    assert found.pass_at == {1: 0.375, 2: 0.5}
    assert found.difference == {1: 0.0, 2: 0.0}
    assert (found.only_this, found.lost, found.both, found.neither) == (("p0",), ("p1",), ("p2",), ("p3",))


def test_an_interval_of_the_difference_by_hand():
    """One problem gained, one lost: resamples have both with a chance of 1/2, one of them twice with 1/4 each."""
    found = base(right_of(2, 0, 1)).compare(right_of(2, 1, 0, k=(1, 2)))
    assert found.difference == {1: 0.0, 2: 0.0}
    assert found.difference_interval == {1: (-0.5, 0.5), 2: (-1.0, 1.0)}


def test_the_same_gain_on_every_problem_is_certain():
    found = base(right_of(4, 0, 1, 2, 3)).compare(right_of(4, 1, 2, 3, 4))
    assert found.difference == {1: 0.25} and found.difference_interval == {1: (0.25, 0.25)}


def test_nothing_changed():
    same = right_of(4, 0, 1, 4, k=(1, 4))
    found = base(same).compare(same)
    assert found.difference == {1: 0.0, 4: 0.0} and found.difference_interval == {1: (0.0, 0.0), 4: (0.0, 0.0)}
    assert (found.only_this, found.lost, found.both, found.neither) == ((), (), ("p1", "p2"), ("p0",))


def test_other_numbers_of_samples_and_other_k():
    """The base was shown at k = 1 only; from 4 samples its pass@2 is 1 - C(3, 2) / C(4, 2)."""
    found = base(right_of(4, 1)).compare(right_of(2, 1, k=(2,)))
    assert found.samples_per_problem == 4 and found.pass_at == {2: 0.5} and found.difference == {2: 0.5}


@pytest.mark.parametrize(
    ("k", "fix"),
    [
        ((1, 4, 8), "evaluate the base again with evaluation.samples_per_problem >= 8, or pass --k 1,4."),
        ((8,), "evaluate the base again with evaluation.samples_per_problem >= 8."),
    ],
)
def test_too_few_samples_of_the_base(k, fix):
    with pytest.raises(ScoresError) as refused:
        base(right_of(4, 1)).check_samples(k)
    assert str(refused.value) == (f"--compare base.json: has 4 samples of each problem, too few for pass@8; {fix}")
    base(right_of(4, 1)).check_samples((1, 4))


def test_the_same_problems_from_another_file():
    base(right_of(1, 0, 1)).check_problems(Path("copy.jsonl"), [problem("copy-0"), problem("copy-1")])


@pytest.mark.parametrize(
    ("problems", "count", "how"),
    [
        ([problem("p0")], 1, "one is the start of the other"),
        ([problem("p0"), problem("p1"), problem("p2")], 3, "one is the start of the other"),
        ([problem("p0"), problem("q1", "7*6=", "42")], 2, "problem 2 is 'q1' here and 'p1' there"),
        ([problem("p0"), problem("p1", "1+1=", "3")], 2, "problem 2, 'p1', has another text or answer"),
    ],
)
def test_other_problems(problems, count, how):
    with pytest.raises(ScoresError) as refused:
        base(right_of(1, 0, 1), left_out=5).check_problems(Path("mine.jsonl"), problems)
    assert str(refused.value) == (
        "--compare base.json: has other problems (2 of held.jsonl, 5 more left out as too long) than this evaluation "
        f"({count} of mine.jsonl): {how}; evaluate both models on the same problems, with room for all of them in "
        "data.max_prompt_tokens."
    )


def test_what_was_sampled_otherwise():
    earlier = base(right_of(4, 1))
    assert earlier.sampled_otherwise(SAMPLING, 4) == []
    assert earlier.sampled_otherwise(SAMPLING.model_copy(update={"seed": 8}), 4) == []  # no cause of a difference
    other = SAMPLING.model_copy(update={"temperature": 0.6, "template": "chat"})
    assert earlier.sampled_otherwise(other, 16) == [
        "base.json was sampled with samples_per_problem=4, this evaluation samples with 16",
        "base.json was sampled with template=plain, this evaluation samples with chat",
        "base.json was sampled with temperature=1.0, this evaluation samples with 0.6",
    ]
