r"""Decide which answers to a problem are equal, for a majority vote.

Two answers are equal if their normalised texts are. Normalisation is that of math-verify, which the verifier also uses
to read answers (units, styles, malformed fractions). It also removes blanks and writes numbers by value (0.5, 1/2 and
\frac{1}{2}; 007 and 7; 1,234 and 1234). The reference answer is not used. If right answers were grouped by the verifier
and wrong ones by text, right answers would win votes that the model did not cast. Answers whose equality needs
mathematics (x+1 and 1+x) stay separate, right or wrong. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import LatexExtractionConfig

from megatron_rapo.verifier.verify import MAX_ANSWER_CHARS

_RULES = LatexExtractionConfig().normalization_config
_BLANK = re.compile(r"(?:\s|~|\\[,;:! ])+")
_STYLED = re.compile(r"\\(?:text|mbox|(?:text|math)(?:bf|it|rm|sf|tt))\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]{1,18})\}\{([0-9]{1,18})\}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+", re.ASCII)
_LIST = re.compile(r",\s")  # "1, 234" is two numbers


def normalised(answer: str) -> str:
    """Return the normalised text of an answer. Equal answers have equal texts."""
    if len(answer) > MAX_ANSWER_CHARS:  # the verifier does not read these either
        return answer
    is_list = bool(_LIST.search(answer))
    text = _BLANK.sub("", normalize_latex(" ".join(answer.split()), _RULES)).removesuffix(".").replace("{,}", ",")
    text = _STYLED.sub(r"\1", text.strip("$"))
    if _THOUSANDS.fullmatch(text) and not is_list:
        text = text.replace(",", "")
    if found := _FRACTION.fullmatch(text):
        over = int(found[3])
        return str(Fraction(int(found[2]), -over if found[1] else over)) if over else text
    return str(Fraction(text)) if _DECIMAL.fullmatch(text) else text


def count_votes(answers: Sequence[str | None], right: Sequence[bool]) -> list[tuple[str, int, bool]]:
    """Return each different answer, its votes and whether it is right: most votes first, then the earliest.

    None is no vote. An answer is right if the verifier accepted any equal one: the verifier has a deadline, and a late
    verdict says nothing.
    """
    votes: dict[str, tuple[int, bool]] = {}
    for answer, is_right in zip(answers, right, strict=True):
        if answer is not None:
            text = normalised(answer)
            count, was_right = votes.get(text, (0, False))
            votes[text] = count + 1, was_right or is_right
    return sorted(((text, *vote) for text, vote in votes.items()), key=lambda vote: -vote[1])
