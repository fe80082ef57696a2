from __future__ import annotations

import pytest

from megatron_rapo.monitor import PhaseTimer, timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by one that shows its only element."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    return now


def test_phases_add_up_and_are_taken_once(clock: list[float]) -> None:
    timer = PhaseTimer()
    for phase, seconds in (("rollout", 2.0), ("train", 0.5), ("rollout", 1.25)):
        with timer(phase):
            clock[0] += seconds
        clock[0] += 7.0  # between phases: nobody's
    timer.add("train", 0.25)
    taken = timer.take()
    assert taken == {"rollout": 3.25, "train": 0.75}
    assert list(taken) == ["rollout", "train"]
    assert timer.take() == {}


def test_a_phase_that_raises_is_timed_and_over(clock: list[float]) -> None:
    timer = PhaseTimer()
    with pytest.raises(ZeroDivisionError), timer("train"):
        clock[0] += 1.5
        raise ZeroDivisionError
    with timer("reshard"):
        clock[0] += 0.25
    assert timer.take() == {"train": 1.5, "reshard": 0.25}


def test_a_phase_inside_a_phase_is_refused() -> None:
    timer = PhaseTimer()
    with timer("rollout"):
        with pytest.raises(RuntimeError, match="phase verify: starts inside phase rollout"), timer("verify"):
            pass
        with pytest.raises(RuntimeError, match=r"take\(\) inside phase rollout"):
            timer.take()
    assert list(timer.take()) == ["rollout"]


def test_the_start_of_each_phase_is_announced() -> None:
    announced: list[str] = []
    timer = PhaseTimer(on_start=announced.append)
    for phase in ("rollout", "train", "rollout"):
        with timer(phase):
            assert announced[-1] == phase
    assert announced == ["rollout", "train", "rollout"]
