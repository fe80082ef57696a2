"""Copies of the user's source files in the run folder: kept, compared, and dropped for lost steps."""

from __future__ import annotations

from pathlib import Path

from megatron_rapo.config import Config
from megatron_rapo.monitor.user_code_copies import record_user_code
from tests.runs import tiny_config


def config(source: Path) -> Config:
    function = {"name": "own", "function": f"{source}:f", "range": [0.0, 1.0]}
    return tiny_config(
        Path("model"), Path("run"), algorithm={"divergence": f"{source}:d"}, reward={"functions": [function]}
    )


def test_sources_are_kept_and_changes_are_told(tmp_path: Path) -> None:
    source, folder = tmp_path / "mine.py", tmp_path / "run"
    said: list[str] = []

    def start(text: str, step: int) -> dict[str, str]:
        source.write_text(text)
        record_user_code(folder, config(source), step=step, warn=said.append)
        return {str(path.relative_to(folder / "user_code")): path.read_text() for path in sorted(folder.rglob("*.py"))}

    names = ("algorithm.divergence.py", "reward.functions.0.function.py")
    first = {f"step-000001/{name}": "one" for name in names}
    assert start("one", 0) == start("one", 2) == first and not said
    assert start("two", 4) == first | {f"step-000005/{name}": "two" for name in names}
    assert said[0] == (
        f"WARNING: algorithm.divergence={source}:d: {source} differs from what the run used before, "
        f"{folder}/user_code/step-000001/algorithm.divergence.py"
    )
    assert len(said) == 2
    assert start("one", 2) == first  # from step 3 again, with what the steps before had
    assert len(said) == 2


def test_a_run_without_any_has_no_folder(tmp_path: Path) -> None:
    record_user_code(tmp_path, tiny_config(Path("model"), Path("run")), step=0, warn=print)
    assert not any(tmp_path.iterdir())
