import json
from collections import Counter

import pytest

from megatron_rapo.data import EpochOrder
from megatron_rapo.errors import InputError


def test_every_epoch_is_a_new_permutation():
    order = EpochOrder(num_items=50, seed=3)
    epochs = [order.take(50) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_fixed_for_ever():
    """A run must also resume with another release of NumPy."""
    order = EpochOrder(num_items=8, seed=0)
    assert [order.take(8), order.take(8)] == [[6, 3, 5, 0, 7, 2, 1, 4], [3, 1, 0, 4, 5, 6, 7, 2]]


def test_seeds_differ():
    assert EpochOrder(50, seed=0).take(50) != EpochOrder(50, seed=1).take(50)
    order = EpochOrder(50, seed=0)
    order.take(50)
    assert order.take(50) != EpochOrder(50, seed=1).take(50)  # no seed + epoch


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_pieces_of_an_epoch_make_the_same_stream(size):
    order, whole = EpochOrder(10, seed=5), EpochOrder(10, seed=5)
    for _ in range(4):
        assert [index for _ in range(10 // size) for index in order.take(size)] == whole.take(10)


def test_a_step_across_the_end_of_an_epoch_has_no_problem_twice():
    """There are 20 problems, 8 per step. With the permutations alone, 128 of these 200 seeds repeat a problem."""
    crossing = 0
    for seed in range(200):
        order = EpochOrder(20, seed)
        drawn = []
        for _ in range(30):
            step = order.take(8)
            assert len(set(step)) == 8
            crossing += bool(order.state_dict()["put_off"])
            drawn += step
        counts = Counter(drawn)  # 12 epochs
        assert all(counts[index] + order.state_dict()["put_off"].count(index) == 12 for index in range(20))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert crossing >= 128  # it was needed


def test_what_is_put_off_is_the_next():
    order = EpochOrder(8, seed=0)  # 6 3 5 0 7 2 1 4, 3 1 0 4 5 6 7 2
    assert order.take(5) == [6, 3, 5, 0, 7]
    assert order.take(5) == [2, 1, 4, 3, 0]  # not 1 again
    assert order.state_dict() == {"num_items": 8, "seed": 0, "epoch": 1, "position": 3, "put_off": [1]}
    assert order.take(2, without={1, 4}) == [5, 6]
    assert order.state_dict() == {"num_items": 8, "seed": 0, "epoch": 1, "position": 6, "put_off": [1, 4]}
    assert order.take(3) == [1, 4, 7]


def test_what_is_put_off_for_long_is_not_lost():
    """Over two epochs it is postponed twice, and no step gets it twice."""
    order, drawn = EpochOrder(4, seed=1), []
    for _ in range(4):
        drawn += order.take(2, without={0, 3})
    assert sorted(drawn) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert sorted(order.state_dict()["put_off"]) == [0, 0, 0, 0, 3, 3, 3, 3]
    assert sorted(order.take(2)) == [0, 3] and sorted(order.take(4)) == [0, 1, 2, 3]


def test_more_than_there_are_is_a_mistake():
    order = EpochOrder(10, seed=5)
    for n, without in ((11, ()), (8, (1, 2, 3)), (1, range(10))):
        with pytest.raises(ValueError, match=rf"^n={n}: there are 10 items, of which {len(without)} "):
            order.take(n, without=without)
    assert len(order.take(7, without=(1, 2, 3, 3))) == 7


def test_taking_none():
    order = EpochOrder(10, seed=5)
    assert order.take(0) == []
    assert order.state_dict() == {"num_items": 10, "seed": 5, "epoch": 0, "position": 0, "put_off": []}
    with pytest.raises(ValueError, match=r"^n=-1: "):
        order.take(-1)


@pytest.mark.parametrize("steps", range(12))
def test_resume_anywhere(steps):
    order = EpochOrder(10, seed=5)
    for _ in range(steps):
        order.take(7)
    state = json.loads(json.dumps(order.state_dict()))
    assert (state["epoch"], state["position"]) == divmod(7 * steps + len(state["put_off"]), 10)
    resumed = EpochOrder(10, seed=5)
    resumed.take(4)
    resumed.load_state_dict(state)
    assert [resumed.take(7) for _ in range(9)] == [order.take(7) for _ in range(9)]


def test_the_state_of_an_older_checkpoint_loads():
    order = EpochOrder(10, seed=5)
    first = order.take(10)
    order.load_state_dict({"num_items": 10, "seed": 5, "epoch": 0, "position": 3})
    assert order.take(7) == first[3:]


def test_the_state_of_another_order_is_refused():
    state = EpochOrder(10, seed=5).state_dict()
    for other, message in (
        (
            EpochOrder(11, seed=5),
            "num_items=11: the saved data order has num_items=10 and would continue differently; ",
        ),
        (EpochOrder(10, seed=6), "seed=6: the saved data order has seed=5 and would continue differently; "),
    ):
        with pytest.raises(InputError) as raised:
            other.load_state_dict(state)
        assert str(raised.value).startswith(message)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"^num_items=0, seed=5: "):
        EpochOrder(0, seed=5)
