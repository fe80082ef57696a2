"""Imports run without garbage collection, and later collections do not scan the imported objects."""

from __future__ import annotations

import gc

from megatron_rapo.runtime import gc_control


def test_what_imports_make_is_never_searched_again() -> None:
    frozen = gc.get_freeze_count()
    try:
        with gc_control.imports():
            assert not gc.isenabled()
            made = [[] for _ in range(10_000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + len(made)
        assert not any(made is each for each in gc.get_objects())
    finally:
        gc.unfreeze()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_control.imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
