from types import SimpleNamespace

import pytest

from megatron_rapo.runtime.patching import patched


def test_attributes_are_restored_after_an_error():
    owner = SimpleNamespace(first=1, second=2, third=3)
    with pytest.raises(KeyError), patched(owner, first=10, second=20):
        assert vars(owner) == {"first": 10, "second": 20, "third": 3}
        raise KeyError
    assert vars(owner) == {"first": 1, "second": 2, "third": 3}


def test_values_set_within_the_context_are_undone():
    owner = SimpleNamespace(first=1)
    with patched(owner, first=2):
        owner.first = 3
    assert owner.first == 1


def test_an_attribute_that_is_missing_is_refused_before_anything_changes():
    owner = SimpleNamespace(first=1)
    with pytest.raises(AttributeError, match="second"), patched(owner, first=2, second=3):
        pass
    assert vars(owner) == {"first": 1}
