import numpy as np
import pytest

from megatron_rapo.types import NOTHING, Span

COMPLETION = NOTHING.extended([5, 6, 7], [0.5, 0.6, 0.7], None, text="", truncated=False, finished=False).extended(
    [8, 9], [0.8, 0.9], 3, text="all", truncated=True
)


@pytest.mark.parametrize(
    ("num_tokens", "spans"),
    [
        (5, (Span(None, 3), Span(3, 2))),
        (4, (Span(None, 3), Span(3, 1))),
        (3, (Span(None, 3),)),
        (1, (Span(None, 1),)),
        (0, ()),
    ],
)
def test_the_first_tokens_of_a_completion(num_tokens, spans):
    found = COMPLETION.shortened(num_tokens, text="a", truncated=False)
    assert found.token_ids.tolist() == [5, 6, 7, 8, 9][:num_tokens]
    assert found.logprobs.tolist() == np.array([0.5, 0.6, 0.7, 0.8, 0.9], np.float32)[:num_tokens].tolist()
    assert (found.spans, found.text, found.truncated, found.finished) == (spans, "a", False, True)
