"""Check when weights are resharded, proven and compared. tests/test_train.py does it with the real parts."""

from contextlib import contextmanager

import pytest

from megatron_rapo.monitor import Monitor
from megatron_rapo.reshard.transfer import Report
from megatron_rapo.training import weight_sync
from megatron_rapo.training.weight_sync import WeightSync

GAP = {"reshard/parity_mean": 1e-6, "reshard/parity_max": 1e-5}


class Parts:
    """Engine, sampler and resharder in one. It records its calls."""

    def __init__(self):
        self.engine, self.weight_version = self, None
        self.resharded, self.proven, self.compared = [], [], []

    @contextmanager
    def updating(self, version):
        yield self
        self.weight_version = version

    def run(self, weights, *, version, prove):
        assert weights is self and self.weight_version != version
        self.resharded.append(version)
        if prove:
            self.proven.append(version)
        return Report(bytes_copied=version, seconds={"transfer": 1.0})


@pytest.fixture
def follow(load, monkeypatch):
    """Return follow(steps, settings...): sync at each of the steps, and return the parts and the syncs' results."""

    def follow(steps, *settings, gap=GAP):
        parts = Parts()
        monkeypatch.setattr(
            weight_sync, "logprob_parity", lambda *_: parts.compared.append(parts.weight_version) or dict(gap)
        )
        sync = WeightSync(load(*settings), policy=None, resharder=parts, sampler=parts, monitor=Monitor(), prompts=())
        return parts, [dict(sync.run(step)) for step in steps]

    return follow


@pytest.mark.parametrize(
    ("settings", "proven", "compared"),
    [
        (("reshard.verify=every", "reshard.parity_every_steps=2"), [7, 8, 9, 10, 11, 12], [7, 8, 10, 12]),
        (("reshard.verify=first", "reshard.parity_every_steps=0"), [7], [7]),
        (("reshard.verify=3", "reshard.parity_every_steps=5"), [7, 9, 12], [7, 10]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_the_first_of_a_start_and_then_as_often_as_is_set(follow, settings, proven, compared):
    parts, _ = follow(range(7, 13), *settings)
    assert parts.resharded == [7, 8, 9, 10, 11, 12]
    assert (parts.proven, parts.compared) == (proven, compared)


def test_an_engine_that_is_up_to_date_is_left_alone(follow):
    parts, found = follow([0, 0, 1, 1], "reshard.parity_every_steps=0")
    assert parts.resharded == [0, 1]
    assert found[0] == found[1] != found[2] == found[3]  # the numbers of the last resharding stay
    assert found[0].keys() >= GAP.keys() and not found[2].keys() & GAP.keys()


@pytest.mark.parametrize("gap", [0.2, float("nan")])
def test_an_engine_that_computes_something_else_stops_the_run(follow, gap):
    with pytest.raises(
        RuntimeError, match=rf"^precision.max_logprob_gap=0.1: .* differ by {gap} nats .* after step 4, "
    ):
        follow([4], gap=GAP | {"reshard/parity_mean": gap})
