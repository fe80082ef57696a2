import sys

import pytest

from megatron_rapo.errors import InputError
from megatron_rapo.runtime.plotting import new_figure


def refusal(path):
    with pytest.raises(InputError) as refused, new_figure(path, 2):
        pass
    return str(refused.value)


def test_a_figure_is_saved_and_closed(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    path = tmp_path / "deep" / "figure.png"
    with new_figure(path, 2) as (figure, axes):
        axes[1].plot([0, 1])
        assert list(axes) == figure.axes
    assert path.read_bytes().startswith(b"\x89PNG") and not plt.fignum_exists(figure.number)


def test_a_picture_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "curves.png", tmp_path / "curves.xyz"):
        found = refusal(path)
        assert found.startswith(f"--plot {path}: cannot be written (")
        assert found.endswith("; name a .png file in a folder of yours.")


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    expected = "--plot: needs matplotlib, which is not installed; pip install '.[plots]'."
    assert refusal(tmp_path / "curves.png") == expected
