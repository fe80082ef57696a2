"""Keep Python's garbage collector from scanning objects that are never garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsearched() -> Iterator[None]:
    """Disable the garbage collector within this context, for code that creates many objects and drops few."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def imports() -> Iterator[None]:
    """Disable the garbage collector during imports, and exclude the imported objects from later collections.

    torch, transformers, Megatron and vLLM create a million lasting objects. Repeated scans of them take a quarter of
    the import time, and vLLM scans them several more times while it builds an engine.
    """
    with unsearched():
        try:
            yield
        finally:
            gc.freeze()
