import json

import pytest

from megatron_rapo.commands.compare import compare_files
from megatron_rapo.evaluation.scores import ScoresError
from tests.evaluation.known import right_of

NOTHING = {"k": None, "output": None, "plot": None, "hard": None}


@pytest.fixture
def files(tmp_path):
    """A base and another model: of four problems one is gained, one lost."""
    base, mine = tmp_path / "base.json", tmp_path / "mine.json"
    right_of(2, 0, 1, 2, 0, k=(1, 2)).save(base)
    right_of(2, 1, 0, 2, 0, k=(1, 2), model="runs/mine/hf").save(mine)
    return base, mine


def test_one_model_on_the_screen(files, capsys):
    compare_files(files[:1], **NOTHING)
    assert capsys.readouterr().out == (
        "models/base on 4 problems, 2 samples each\n"
        "                   score    95% interval\n"
        "avg@2              0.375  0.000 to 0.750\n"
        "pass@1             0.375  0.000 to 0.750\n"
        "pass@2             0.500  0.000 to 1.000\n"
        "maj@2              0.500  0.000 to 1.000\n"
        "completion tokens    1.5\n"
        "truncated          0.000\n"
    )


def test_two_models_on_the_screen(files, capsys):
    base, mine = files
    compare_files(files, **NOTHING)
    assert capsys.readouterr().out.partition("truncated          0.000\n")[2] == (
        f"runs/mine/hf ({mine}) against models/base ({base})\n"
        "         base  other  difference      95% interval  p\n"
        "avg@2   0.375  0.375      +0.000  -0.375 to +0.375  1\n"
        "pass@1  0.375  0.375      +0.000  -0.375 to +0.375  1\n"
        "pass@2  0.500  0.500      +0.000  -0.750 to +0.750  1\n"
        "maj@2   0.500  0.500      +0.000  -0.750 to +0.750  1\n"
        "solved at least once in 2 samples, McNemar's p 1\n"
        "                         problems\n"
        "by the other only               1\n"
        "by the base only (lost)         1\n"
        "by both                         1\n"
        "by neither                      1\n"
        "on the 2 problems that the base never solves\n"
        "         base  other    95% interval\n"
        "avg@2   0.000  0.250  0.000 to 0.500\n"
        "pass@1  0.000  0.250  0.000 to 0.500\n"
        "pass@2  0.000  0.500  0.000 to 1.000\n"
        "maj@2   0.000  0.500  0.000 to 1.000\n"
        "on the 2 problems that the base solves\n"
        "         base  other    95% interval\n"
        "avg@2   0.750  0.500  0.000 to 1.000\n"
        "pass@1  0.750  0.500  0.000 to 1.000\n"
        "pass@2  1.000  0.500  0.000 to 1.000\n"
        "maj@2   1.000  0.500  0.000 to 1.000\n"
    )


def test_other_settings_and_numbers_of_samples_are_said(files, tmp_path, capsys):
    more = tmp_path / "more.json"
    of_more = right_of(4, 1, 0, 2, 0, k=(1, 2))
    of_more.model_copy(update={"sampled_with": of_more.sampled_with | {"temperature": 0.6}}).save(more)
    compare_files([files[0], more], **NOTHING)
    out = capsys.readouterr().out
    assert "note: sampled with temperature=1.0 and 0.6\n" in out
    assert "solved at least once in 4 samples, the base's in 2\n" in out and "\navg     0.375" in out


def test_everything_that_can_be_written(files, tmp_path, capsys):
    names = {"output": "out.json", "plot": "curves.png", "hard": "hard.jsonl"}
    pytest.importorskip("matplotlib")
    paths = {option: tmp_path / name for option, name in names.items()}
    compare_files(files, k=[2], **paths)
    assert f"{paths['hard']}: 2 of 4 problems\n" in capsys.readouterr().out
    assert list(json.loads(paths["output"].read_text())[0]["metrics"]) == ["avg", "pass@2", "maj@2"]
    assert [json.loads(line)["id"] for line in paths["hard"].read_text().splitlines()] == ["p0", "p3"]
    assert paths["plot"].stat().st_size > 1000


def test_what_is_compared_is_not_replaced(files, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(files[1])
    with pytest.raises(ScoresError) as refused:
        compare_files(files, **NOTHING | {"output": link})
    assert str(refused.value) == f"{link}: is compared, and would be replaced; name another file."
