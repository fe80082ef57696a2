import pytest

from megatron_rapo.data import EpochOrder
from megatron_rapo.errors import InputError


def test_every_epoch_is_a_new_permutation():
    order = EpochOrder(num_items=50, seed=3)
    epochs = [order.take(50) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_fixed_for_ever():
    """A run resumes under another release of NumPy, too."""
    assert EpochOrder(num_items=8, seed=0).take(16) == [6, 3, 5, 0, 7, 2, 1, 4, 3, 1, 0, 4, 5, 6, 7, 2]


def test_seeds_differ():
    assert EpochOrder(50, seed=0).take(50) != EpochOrder(50, seed=1).take(50)
    assert EpochOrder(50, seed=0).take(100)[50:] != EpochOrder(50, seed=1).take(50)  # no seed + epoch


@pytest.mark.parametrize("size", [1, 3, 7, 10, 23])
def test_pieces_make_the_same_stream(size):
    order, whole = EpochOrder(10, seed=5), EpochOrder(10, seed=5).take(230)
    pieces = [index for _ in range(230 // size) for index in order.take(size)]
    assert pieces == whole[: len(pieces)]


def test_taking_none():
    order = EpochOrder(10, seed=5)
    assert order.take(0) == []
    assert order.state_dict() == {"num_items": 10, "seed": 5, "epoch": 0, "position": 0}
    with pytest.raises(ValueError, match=r"^n=-1: "):
        order.take(-1)


@pytest.mark.parametrize("taken", [0, 1, 9, 10, 11, 35])
def test_resume_anywhere(taken):
    order = EpochOrder(10, seed=5)
    order.take(taken)
    state = order.state_dict()
    assert state == {"num_items": 10, "seed": 5, "epoch": taken // 10, "position": taken % 10}
    resumed = EpochOrder(10, seed=5)
    resumed.take(4)
    resumed.load_state_dict(state)
    assert resumed.take(40) == order.take(40)


def test_the_state_of_another_order_is_refused():
    state = EpochOrder(10, seed=5).state_dict()
    for other, message in (
        (EpochOrder(11, seed=5), "num_items=11: the saved data order has num_items=10 and would go on elsewhere; "),
        (EpochOrder(10, seed=6), "seed=6: the saved data order has seed=5 and would go on elsewhere; "),
    ):
        with pytest.raises(InputError) as raised:
            other.load_state_dict(state)
        assert str(raised.value).startswith(message)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"^num_items=0, seed=5: "):
        EpochOrder(0, seed=5)
