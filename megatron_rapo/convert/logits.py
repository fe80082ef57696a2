"""Compare the logits of two checkpoints, computed by transformers in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from megatron_rapo.convert.source import ModelSource
from megatron_rapo.data import load_tokenizer
from megatron_rapo.models.parameter_map import hf_shapes

SAMPLE_TEXT = (
    "Problem: Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many "
    "clips did Natalia sell altogether in April and May?\n"
    "Solution: In May she sold \\(48 / 2 = 24\\) clips. Altogether she sold \\(48 + 24 = 72\\), so \\boxed{72}.\n"
    "Größe, naïve, 数学, x² + y² ≤ r²; def f(x): return x * x\n"
)


@dataclass(frozen=True)
class LogitDifference:
    """Difference of two models' logits over the tokens of a text."""

    tokens: int
    largest: float  # largest |a - b| of a logit
    mean_kl: float  # mean KL(a || b) of the next token's distributions, in nats
    same_choice: int  # tokens after which both models have the same most likely next token


def compare_logits(a: ModelSource, b: ModelSource, text: str | None) -> LogitDifference:
    """Compare logits after every token of `text`, with `a`'s tokenizer. Holds one model at a time, in float32."""
    token_ids = torch.tensor([load_tokenizer(a.like).encode(text or SAMPLE_TEXT)])
    ours_TV, theirs_TV = (logits(source, token_ids) for source in (a, b))
    logp_TV, other_logp_TV = ours_TV.log_softmax(-1), theirs_TV.log_softmax(-1)
    kl_T = (logp_TV.exp() * (logp_TV - other_logp_TV)).sum(-1)
    return LogitDifference(
        tokens=len(ours_TV),
        largest=float((ours_TV - theirs_TV).abs().nan_to_num(nan=torch.inf).max()),
        mean_kl=float(kl_T.mean()),
        same_choice=int((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum()),
    )


@torch.no_grad()
def logits(source: ModelSource, token_ids: Tensor) -> Tensor:
    """Return the logits [T, V], float32, of `token_ids` [1, T]."""
    with no_init_weights():
        config = AutoConfig.from_pretrained(source.like, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    parameters = dict(model.named_parameters())
    for name, tensor in source.tensors(hf_shapes(source.model)):
        parameters.pop(name).copy_(tensor)
    assert not parameters, f"not in the checkpoint: {sorted(parameters)}"
    found: Tensor = model.eval()(token_ids).logits[0]
    return found
