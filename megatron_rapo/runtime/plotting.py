"""Draw figures with matplotlib, which is an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_rapo.errors import InputError


@contextmanager
def new_figure(path: Path, columns: int, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Give the body a figure and its axes [columns], side by side, then save it to `path`. Raises InputError.

    `options` go to matplotlib's `subplots`.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot: needs matplotlib, which is not installed; pip install '.[plots]'.") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, squeeze=False, **options)
    try:
        yield figure, axes[0]
        _save(figure, path)
    finally:
        plt.close(figure)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None})
    except (OSError, ValueError) as error:
        raise InputError(
            f"--plot {path}: cannot be written ({error}); name a .png file in a folder of yours."
        ) from None
