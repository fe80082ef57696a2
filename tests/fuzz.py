"""Seeded mutations of files: of JSON values by place, of text and of bytes; and what may come of them."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from megatron_rapo.errors import InputError, printable

DEADLINE_S = 20.0
"""CPU seconds of one case, where most take milliseconds: what takes so long would hang."""
DIGITS, DEEP = "@digits@", "@deep@"  # stand for JSON that Python's own writer refuses
NUMBERS = (0, -1, 1, 2, 3, 1.5, -0.0, 1e-320, 1e308, 2**31, 2**63, 10**20, float("nan"), float("inf"), -float("inf"))
TEXTS = (
    "",
    " ",
    "7",
    "x",
    "a\nb",
    "a\x1b[2Jb",
    "a\0b",
    "\ud800",
    "\u202e",
    "../x",
    "/etc/passwd",
    "x" * 10**5,
    "{}",
    "%s",
)
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, [], {}, [1], ["x"], {"a": 1}, [[[]]], DIGITS, DEEP)


class Hang(Exception):
    """A case took longer than DEADLINE_S."""


@contextmanager
def deadline() -> Iterator[None]:
    """Raise Hang in the body after DEADLINE_S of CPU time, on a busy machine as on an idle one."""

    def late(*_: object) -> None:
        raise Hang(f"over {DEADLINE_S} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def problem(use: Callable[[], object], *, max_lines: int = 1) -> str | None:
    """Return what is wrong with how `use` ends: anything but a return or an InputError of a line that can be shown."""
    try:
        with deadline():
            use()
    except InputError as error:
        lines = str(error).split("\n")
        if len(lines) > max_lines:
            return f"{len(lines)} lines: {printable(str(error)):.300}"
        return None if lines[0].strip() else "an empty message"
    except Exception as error:
        return f"{type(error).__name__}: {printable(str(error)):.300}"
    return None


def mutated_json(random: Random, value: Any) -> bytes:
    """Return JSON of `value` with one to three changes somewhere within it."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(random, value)
    text = json.dumps(value, indent=random.choice((None, 1)))
    text = text.replace(json.dumps(DIGITS), "7" * 5000).replace(json.dumps(DEEP), "[" * 20000 + "]" * 20000)
    if random.random() < 0.15:
        return mutated_bytes(random, text.encode())
    if random.random() < 0.1 and text.startswith("{") and len(value):  # a key twice
        key = random.choice(list(value))
        text = text[:-1].rstrip() + f", {json.dumps(key)}: {json.dumps(random.choice((None, 1, 'x')))}}}"
    return text.encode("utf-8", "surrogatepass")


def mutated_bytes(random: Random, content: bytes) -> bytes:
    """Return `content` with a few bytes changed, put in, doubled or cut off."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(len(content) + 1)
        match random.randrange(6):
            case 0:
                content = content[:place]
            case 1:
                for _ in range(random.choice((1, 4, 64))):
                    if content:
                        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            case 2:
                content[place:place] = random.choice((b"\0", b"\xff\xfe", b"\x1b[2J", b'"', b"{" * 5000, b"9" * 5000))
            case 3:
                content[place:place] = content[: random.randrange(len(content) + 1)]
            case 4:
                del content[place : place + random.randrange(64)]
            case _:
                content[place : place + 8] = random.randbytes(8)
    return bytes(content)


def _changed(random: Random, value: Any) -> Any:
    """One change: at the top rarely, else at a random place."""
    places = list(_places(value))
    if not places or random.random() < 0.03:
        return random.choice(VALUES)
    inner, key = random.choice(places)
    match random.randrange(5) if isinstance(inner, dict) else random.randrange(3):
        case 0 | 1:
            inner[key] = random.choice(VALUES)
        case 2:
            inner[key] = random.choice(([inner[key]], {"a": inner[key]}, str(inner[key])))
        case 3:
            del inner[key]
        case _:
            inner[f"{key}{random.choice(('s', '_', chr(27), ' '))}"] = inner.pop(key)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within `value` with each of its keys or indices."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
