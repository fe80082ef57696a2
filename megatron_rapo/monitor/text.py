"""Text that people are shown."""

from __future__ import annotations

import unicodedata


def without_controls(text: str, replacement: str = "") -> str:
    """`text` with every control, format and surrogate character but newlines and tabs replaced.

    What a model wrote must neither steer a terminal, nor reorder a line, nor break UTF-8.
    """
    return "".join(
        replacement if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" else c for c in text
    )
