"""Python's search for garbage, kept off what is never garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsearched() -> Iterator[None]:
    """Within it nothing is searched for garbage: for what makes many objects and loses few."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def imports() -> Iterator[None]:
    """For imports: unsearched, and what they made is never searched again.

    torch, transformers, Megatron and vLLM make a million objects that all stay. Searching them again and again is a
    quarter of the imports' time, and vLLM searches them several times more while an engine is built.
    """
    with unsearched():
        try:
            yield
        finally:
            gc.freeze()
