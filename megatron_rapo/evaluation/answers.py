r"""Which answers to a problem are the same one, for a majority vote.

Two answers are the same where their texts are after normalisation: that of math-verify, by which the verifier too reads
an answer (units, styles, malformed fractions), blanks taken out, and numbers by their value (0.5, 1/2 and \frac{1}{2};
007 and 7; 1,234 and 1234). The reference answer takes no part: were right answers put together by what the verifier
finds equal to it, and wrong ones by their texts, the right ones would win votes that the model has not cast. Answers
that only mathematics shows to be equal (x+1 and 1+x) stay apart, for right and wrong ones alike. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import LatexExtractionConfig

from megatron_rapo.rewards.verify import MAX_ANSWER_CHARS

_RULES = LatexExtractionConfig().normalization_config
_BLANK = re.compile(r"(?:\s|~|\\[,;:! ])+")
_STYLED = re.compile(r"\\(?:text|mbox|(?:text|math)(?:bf|it|rm|sf|tt))\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]{1,18})\}\{([0-9]{1,18})\}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+", re.ASCII)
_LIST = re.compile(r",\s")  # "1, 234" is two numbers


def normalised(answer: str) -> str:
    """The text by which an answer is told from others."""
    if len(answer) > MAX_ANSWER_CHARS:  # what the verifier does not read either
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
    """Each different answer, how many gave it and whether it is right; the most frequent first, then the earliest.

    None gives no vote. An answer is right where the verifier found any that is the same right: it has a deadline, and a
    late verdict says nothing.
    """
    votes: dict[str, tuple[int, bool]] = {}
    for answer, is_right in zip(answers, right, strict=True):
        if answer is not None:
            text = normalised(answer)
            count, was_right = votes.get(text, (0, False))
            votes[text] = count + 1, was_right or is_right
    return sorted(((text, *vote) for text, vote in votes.items()), key=lambda vote: -vote[1])
