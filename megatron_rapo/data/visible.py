"""Text from a file, made safe to print: it can neither steer a terminal nor reorder or hide what is shown."""

from __future__ import annotations

import unicodedata

_HARMFUL = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, separators of lines and paragraphs


def visible(text: str, *, keep: str = "") -> str:
    """Return `text` with <U+001B> for each control or format character that is not in `keep`."""
    return "".join(f"<U+{ord(c):04X}>" if unicodedata.category(c) in _HARMFUL and c not in keep else c for c in text)
