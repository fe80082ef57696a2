import pytest

from megatron_rapo.evaluation.curves import curve_k, plot_curves
from tests.evaluation.known import evaluated, right_of

BASE, MINE = evaluated(right_of(8, 0, 1, 4, 8)), evaluated(right_of(6, 1, 0, 3, 6), "runs/mine.json")


@pytest.mark.parametrize(("n", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_k_of_a_curve(n, expected):
    assert curve_k(n) == expected


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are closed, which are those in the pictures."""
    plt = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    return figures


def test_what_is_drawn(drawn, tmp_path):
    path = tmp_path / "deep" / "curves.png"
    plot_curves([BASE, MINE], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    [figure] = drawn
    whole, hard, rest = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [
        "all problems: 4",
        "hard, never solved by base: 1",
        "the rest: 3",
    ]
    assert [text.get_text() for text in whole.get_legend().get_texts()] == ["base", "mine"]
    base, mine = whole.get_lines()
    assert base.get_xdata().tolist() == [1, 2, 4, 8] and mine.get_xdata().tolist() == [1, 2, 4, 6]
    assert base.get_ydata()[0] == pytest.approx((1 / 8 + 4 / 8 + 1) / 4) and base.get_ydata()[-1] == 3 / 4
    assert [line.get_ydata()[-1] for line in hard.get_lines()] == [0, 1]
    assert [line.get_ydata()[0] for line in rest.get_lines()] == pytest.approx([(1 / 8 + 4 / 8 + 1) / 3, (0.5 + 1) / 3])
    band = whole.collections[0].get_paths()[0].vertices[:, 1]
    interval = right_of(8, 0, 1, 4, 8, k=(8,)).scores["pass@8"].interval
    assert interval[0] < 3 / 4 < interval[1] and {band.min(), band.max()} <= {*interval, band.min()}


def test_without_hard_problems_there_is_one_part(drawn, tmp_path):
    plot_curves([evaluated(right_of(2, 1, 2))], tmp_path / "curves.png")
    assert [axis.get_title() for axis in drawn[0].axes] == ["all problems: 2"]
