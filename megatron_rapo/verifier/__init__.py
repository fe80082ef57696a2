"""Find the answer of a completion and judge it, in processes that can be killed. No torch."""

from megatron_rapo.verifier.answers import MAX_READ_CHARS, Extract, extractor
from megatron_rapo.verifier.boxed import final_answer, last_boxed
from megatron_rapo.verifier.judging import Judging
from megatron_rapo.verifier.pool import VerifierPool
from megatron_rapo.verifier.verify import judge

__all__ = ["MAX_READ_CHARS", "Extract", "Judging", "VerifierPool", "extractor", "final_answer", "judge", "last_boxed"]
