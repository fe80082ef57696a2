import json
from dataclasses import asdict, replace

import pytest

from megatron_rapo.evaluation.samples import FORMAT, ProblemSamples, SampledWith, SamplesError, SamplesFile
from megatron_rapo.verifier import extractor
from tests.evaluation.known import SAMPLED_WITH, W, group, sampled

ABOUT = {"model": "models/base", "data": "held.jsonl", "left_out": 2}


def opened(path, sampled_with=SAMPLED_WITH):
    return SamplesFile(path, sampled_with, ABOUT)


def read(path):
    """Open the file again and return its problems."""
    found = []
    with opened(path) as file:
        file.read(found.append)
        assert file.count == len(found)
    return found


@pytest.fixture
def path(tmp_path):
    """Write all three problems in two parts."""
    path = tmp_path / "deep" / "base.jsonl"
    with opened(path) as file:
        file.read(lambda _: pytest.fail("it is new"))
        file.append(sampled()[:2])
        file.append(sampled()[2:])
    return path


def test_the_file(path):
    first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert first == {"format": FORMAT, "sampled_with": asdict(SAMPLED_WITH), **ABOUT}
    assert [(line["index"], line["id"]) for line in lines] == [(0, "a"), (1, "b"), (2, "a")]
    assert lines[1]["samples"].pop(0) == {
        "seed": 10,
        "text": r"so \boxed{3}",
        "answer": "3",
        "verdict": "wrong",
        "length": 1,
        "truncated": True,
        "tokens": [0],
    }
    assert {name: value for name, value in lines[1].items() if name != "samples"} == {
        "index": 1,
        "id": "b",
        "problem": "1+1=",
        "answer": "2",
        "prompt": "1+1=\n",
    }
    assert [sample["answer"] for sample in lines[1]["samples"]] == ["?!", "3.0", None]


def test_what_is_read_is_what_was_written(path):
    before = path.read_bytes()
    assert read(path) == sampled()
    assert path.read_bytes() == before


def test_a_kill_at_any_byte_loses_only_what_was_not_whole(path, tmp_path):
    """The continued file is equal to the byte."""
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(0, len(whole), 37):
        killed = tmp_path / "killed.jsonl"
        killed.write_bytes(whole[:size])
        with opened(killed) as file:
            found = []
            file.read(found.append)
            assert found == sampled()[: max(0, sum(end <= size for end in ends) - 1)]
            file.append(sampled()[file.count :])
        assert killed.read_bytes() == whole


def refusal(call, *arguments):
    with pytest.raises(SamplesError) as refused:
        call(*arguments)
    return str(refused.value)


CHANGES = {
    "weights": ("9b", 'the weights of model.path was "3f" and is "9b"'),
    "problems": ("00", 'the prompts and answers of evaluation.data was "9a" and is "00"'),
    "template": ("chat", 'data.template was "plain" and is "chat"'),
    "stop": ([], 'rollout.stop was ["Q:"] and is []'),
    "stop_token_ids": ([8], "rollout.stop_token_ids was [] and is [8]"),
    "dtype": ("bfloat16", 'precision.dtype was "float32" and is "bfloat16"'),
    "fp8": (True, "rollout.fp8 was false and is true"),
    "samples_per_problem": (8, "evaluation.samples_per_problem was 4 and is 8"),
    "temperature": (0.6, "evaluation.temperature was 1.0 and is 0.6"),
    "top_p": (1.0, "evaluation.top_p was 0.9 and is 1.0"),
    "max_completion_tokens": (97, "evaluation.max_completion_tokens was 96 and is 97"),
    "seed": (4, "run.seed was 3 and is 4"),
    "answer": ("last_number", 'reward.answer was "boxed" and is "last_number"'),
}


def test_every_setting_is_watched():
    assert list(CHANGES) == list(SampledWith.__dataclass_fields__)


@pytest.mark.parametrize("field", CHANGES)
def test_other_settings_are_refused_by_name(path, field):
    value, words = CHANGES[field]
    before = path.read_bytes()
    assert refusal(opened, path, replace(SAMPLED_WITH, **{field: value})) == (
        f"--output {path}: was begun with other settings, and they must not be mixed: {words}; use the former "
        "settings, or name another file."
    )
    assert path.read_bytes() == before


def test_a_file_from_before_there_were_forms_of_answers_has_boxes(path):
    first, rest = path.read_text().split("\n", 1)
    header = json.loads(first)
    del header["sampled_with"]["answer"]
    path.write_text(json.dumps(header) + "\n" + rest)
    assert read(path) == sampled()
    said = refusal(opened, path, replace(SAMPLED_WITH, answer="after:####"))
    assert 'mixed: reward.answer was "boxed" and is "after:####"; use' in said


def test_the_answer_is_what_was_judged():
    found = ProblemSamples.of(0, group("a", ["2"], [W]), [0], extractor("last_number"))
    assert found.samples[0].text == r"so \boxed{2}" and found.samples[0].answer == "2"
    assert ProblemSamples.of(0, group("a", ["2"], [W]), [0], extractor("tag:answer")).samples[0].answer is None


def test_all_that_differs_is_named(path):
    said = refusal(opened, path, replace(SAMPLED_WITH, temperature=0.6, seed=4))
    assert "evaluation.temperature was 1.0 and is 0.6; run.seed was 3 and is 4; use" in said


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"dear diary\n", "does not hold samples; name another file."),
        (b'{"problem": "1+1="}\n', "does not hold samples; name another file."),
        (b"[1]\n", "does not hold samples; name another file."),
        (b'{"format": "megatron_rapo samples 9"}\n', f"format='megatron_rapo samples 9': not {FORMAT!r}; name another"),
    ],
)
def test_another_file_is_not_written_over(tmp_path, first, words):
    path = tmp_path / "other.jsonl"
    path.write_bytes(first)
    assert refusal(opened, path).startswith(f"--output {path}: {words}")
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a problem's samples (JSONDecodeError("),
        ("[]", "not a problem's samples (TypeError("),
        ('{"index": 1}', "not a problem's samples (KeyError('id'))"),
        (json.dumps(asdict(sampled()[2])), "index=2 instead of 1"),
        (json.dumps(asdict(sampled()[0])), "index=0 instead of 1"),
    ],
)
def test_a_broken_line_is_named(path, line, words):
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    said = refusal(read, path)
    assert said.startswith(f"--output {path}:3: {words}")
    assert said.endswith("; remove this line and those after it, or name another file.")


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("here before")
    (tmp_path / "folder.jsonl").mkdir()
    for path, words in (
        (tmp_path / "a.json", "holds JSON lines; name a file that ends in .jsonl."),
        (tmp_path / "folder.jsonl", "[Errno 21] Is a directory"),
        (tmp_path / "file" / "a.jsonl", "[Errno 17] File exists"),
    ):
        assert refusal(opened, path).startswith(f"--output {path}: {words}")
    assert (tmp_path / "file").read_text() == "here before"


def test_two_evaluations_do_not_write_one_file(path):
    with opened(path):
        assert refusal(opened, path) == (
            f"--output {path}: another evaluation is writing it; wait for it, or name another file."
        )
    read(path)  # the file can be opened again


def test_a_problem_out_of_turn_is_a_flaw(path):
    with opened(path) as file:
        file.read(lambda _: None)
        with pytest.raises(AssertionError):
            file.append([ProblemSamples(**{**vars(sampled()[0]), "index": 7})])
