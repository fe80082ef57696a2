"""Python's search for garbage, kept off what is never garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """For imports: nothing is searched for garbage meanwhile, and what they made never again.

    torch, transformers, Megatron and vLLM make a million objects that all stay. Searching them again and again is a
    quarter of the imports' time, and vLLM searches them four times more while an engine is built.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
