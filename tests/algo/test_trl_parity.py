"""Compare the GRPO baselines with TRL 1.16: the loss and its gradient by every parameter of a model, to 1e-5.

TRL's own trainer, built from its public settings, computes its loss from token ids; ours starts from the logits of the
same model. Masks, advantages and the log-probabilities of the old policy, the reference and the engine are the same
tensors, off-policy, so that clips decide on both sides. What each setting of TRL is called here:

| TRL                                               | here                                                        |
|---------------------------------------------------|-------------------------------------------------------------|
| loss_type="dapo", "bnpo"                          | weight_T = 1: a mean over tokens                            |
| loss_type="grpo"                                  | weight_T = mean length / length: a mean over sequences      |
| loss_type="dr_grpo", "luspo"                      | a constant weight_T: their denominators are others          |
| epsilon, epsilon_high                             | clip_low, clip_high                                         |
| importance_sampling_level="sequence"              | sequence_log_ratio_T (GSPO)                                 |
| beta, use_bias_correction_kl=False                | alpha, divergence="forward_kl_k3"                           |
| beta, use_bias_correction_kl=True, its default    | alpha, divergence="reverse_kl_k3", engine = old, no cap     |
| entropy_coef                                      | beta, in a mean over tokens                                 |
| the correction for vLLM in mode "token_truncate"  | engine_logp_T, importance_cap                               |

What cannot be matched, and why:

- A token-level correction for the engine beside sequence-level ratios: the values agree, the gradients do not. TRL
  differentiates the sequence's ratio, so each of its tokens gets the mean of their corrections; here each has its own.
- The corrected KL beside a correction for the engine: TRL weighs it by pi / pi_old, not truncated, and here every
  estimate but plain k3 is weighed by pi / engine, truncated. With sequence-level ratios TRL weighs each token's KL by
  the sequence's (differentiable) ratio, which its documentation says is not the reverse KL's gradient.
- "bnpo" over several micro-batches: a mean of their means. Here denominators are those of the whole optimizer step.
- mask_truncated_completions in a mean over sequences: TRL counts the sequences left out, here they are not counted.
- The entropy bonus in a mean over sequences: TRL's stays a mean over tokens, here it shares the weights.
- The correction for vLLM in its default mode, "sequence_mask", and in "token_mask" and "sequence_truncate": here
  weights are of tokens, and truncated.
- "cispo", "sapo", "vespo", the second clip `delta`, masks by entropy and by off-policyness: other algorithms.
- Advantages, an input here: TRL adds 1e-4 to a group's standard deviation, `group_advantages` 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from megatron_rapo.algo import LossInputs, LossSettings, rapo_loss
from tests.tiny_models import NUM_TOKENS, load_reference, save_tiny_model

# B sequences, S positions of which the last C are the completion's, T = B * C tokens, masked or not.
B, PROMPT, C = 6, 5, 9
UNCAPPED = 1e9
CLIP = {"clip_low": 0.2, "clip_high": 0.28}

pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions")  # its server client's concern


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of both losses."""

    ids_BS: Tensor
    attends_BS: Tensor  # 0 on padding: prompts are padded on the left, completions on the right
    mask_BC: Tensor  # tokens in the loss: those of the completion that the policy wrote
    advantage_B: Tensor
    old_logp_BC: Tensor
    ref_logp_BC: Tensor
    engine_logp_BC: Tensor

    def rows(self, first: int, last: int) -> Batch:
        return Batch(**{each.name: getattr(self, each.name)[first:last] for each in fields(self)})


class Result(NamedTuple):
    loss: float
    gradient: Tensor  # by all parameters, flat
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("trl") / "model", tied=False)


@pytest.fixture(scope="module")
def batch(folder):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale):
        return scale * torch.randn(*shape, generator=generator)

    ids_BS = torch.randint(3, NUM_TOKENS, (B, PROMPT + C), generator=generator)
    attends_BS = torch.ones_like(ids_BS)
    for row, (padding, length) in enumerate(zip((0, 2, 4, 1, 0, 3), (9, 6, 1, 8, 4, 7), strict=True)):
        attends_BS[row, :padding] = 0
        attends_BS[row, PROMPT + length :] = 0
    mask_BC = attends_BS[:, PROMPT:].bool()
    mask_BC[3, 2:4] = False  # a tool's words, say: attended to, and not in the loss
    with torch.no_grad():
        logp_BC = completion_scores(load_reference(folder), ids_BS, attends_BS)[0]
    old_logp_BC = logp_BC + normal(B, C, scale=0.3) + normal(B, 1, scale=0.3)
    return Batch(
        ids_BS=ids_BS,
        attends_BS=attends_BS,
        mask_BC=mask_BC,
        advantage_B=torch.tensor([1.9, -0.8, 0.7, -0.9, 1.4, -0.2]),
        old_logp_BC=old_logp_BC,
        ref_logp_BC=logp_BC + normal(B, C, scale=0.7),
        engine_logp_BC=old_logp_BC + normal(B, C, scale=0.4),
    )


def completion_scores(model, ids_BS, attends_BS):
    """Return log-probability and entropy of each token of the completion, from the logits."""
    logp_BCV = model(input_ids=ids_BS, attention_mask=attends_BS).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    logp_BC = logp_BCV.gather(-1, ids_BS[:, PROMPT:, None]).squeeze(-1)
    return logp_BC, -(logp_BCV.exp() * logp_BCV).sum(-1)


def gradient_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def run_trl(folder, batch, tmp_path_factory):
    """Return run_trl(**settings of GRPOConfig): TRL's loss, summed over the micro-batches of an optimizer step."""
    pytest.importorskip("trl", reason="TRL is not installed; pip install '.[peers]' brings it")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def run_trl(**settings: Any) -> Result:
        config = {
            "output_dir": str(tmp_path_factory.mktemp("trainer")),
            "model_init_kwargs": {"dtype": "float32"},
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "disable_tqdm": True,
            "num_generations": 2,
            "max_completion_length": C,
            "per_device_train_batch_size": B,
            "epsilon": CLIP["clip_low"],
            "epsilon_high": CLIP["clip_high"],
        }
        trainer = GRPOTrainer(
            model=str(folder),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(**config | settings),
            train_dataset=Dataset.from_dict({"prompt": ["1+1="] * B}),
        )
        return drive(trainer)

    def drive(trainer) -> Result:
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # as its loop does
        # use_vllm=True in the settings would start an engine; the loss only asks whether there was one.
        trainer.use_vllm = trainer.args.vllm_importance_sampling_mode == "token_truncate"
        cap = trainer.args.vllm_importance_sampling_clip_max
        loss, size = 0.0, trainer.args.per_device_train_batch_size
        for first in range(0, B, size):
            rows = batch.rows(first, first + size)
            inputs = {
                "prompt_ids": rows.ids_BS[:, :PROMPT],
                "prompt_mask": rows.attends_BS[:, :PROMPT],
                "completion_ids": rows.ids_BS[:, PROMPT:],
                "completion_mask": rows.attends_BS[:, PROMPT:],
                "tool_mask": (rows.mask_BC | (rows.attends_BS[:, PROMPT:] == 0)).int(),
                "advantages": rows.advantage_B,
                "old_per_token_logps": rows.old_logp_BC,
                "ref_per_token_logps": rows.ref_logp_BC,
                "num_items_in_batch": batch.mask_BC.sum(),
                # as GRPOTrainer._generate_and_score_completions makes it
                "importance_sampling_ratio": (rows.old_logp_BC - rows.engine_logp_BC).exp().clamp(max=cap),
            }
            loss_of_part = trainer.compute_loss(trainer.model, inputs)
            loss_of_part.backward()
            loss += loss_of_part.item()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        return Result(loss, gradient_of(trainer.model), metrics)

    return run_trl


@pytest.fixture(scope="module")
def run_ours(folder, batch):
    """Return run_ours(**settings of rapo_loss, weights, ratios and samplers): our loss of an optimizer step."""

    def run_ours(
        *, weights: str = "token_mean", sequence_ratio: bool = False, engine: bool = False, **settings: Any
    ) -> Result:
        model = load_reference(folder)
        logp_BC, entropy_BC = completion_scores(model, batch.ids_BS, batch.attends_BS)
        length_B1 = batch.mask_BC.sum(-1, keepdim=True)
        num_tokens = int(length_B1.sum())
        weight_B1 = {
            "token_mean": torch.ones(B, 1),
            "sequence_mean": num_tokens / B / length_B1,
            "sequence_sum": torch.full((B, 1), num_tokens / B),
            "longest_completion": torch.full((B, 1), num_tokens / (B * C)),
        }[weights]
        log_ratio_BC = (logp_BC.detach() - batch.old_logp_BC) * batch.mask_BC
        sequence_log_ratio_B1 = log_ratio_BC.sum(-1, keepdim=True) / length_B1

        def flat(values: Tensor) -> Tensor:
            return values.expand(B, C).flatten()

        defaults = {"divergence": "none", "alpha": 0.0, "beta": 0.0, "importance_cap": UNCAPPED, "log_rho_cap": 20.0}
        inputs = LossInputs(
            logp_T=flat(logp_BC),
            entropy_T=flat(entropy_BC),
            old_logp_T=flat(batch.old_logp_BC),
            ref_logp_T=flat(batch.ref_logp_BC),
            engine_logp_T=flat(batch.engine_logp_BC if engine else batch.old_logp_BC),
            advantage_T=flat(batch.advantage_B[:, None]),
            weight_T=flat(weight_B1),
            mask_T=flat(batch.mask_BC),
            sequence_log_ratio_T=flat(sequence_log_ratio_B1) if sequence_ratio else None,
        )
        sums = rapo_loss(inputs, LossSettings(**CLIP | defaults | settings))
        loss = sums.loss / num_tokens
        loss.backward()
        metrics = {name: value.item() / num_tokens for name, value in sums.metrics.items()}
        return Result(loss.item(), gradient_of(model), metrics)

    return run_ours


def relative_error(found: Result, expected: Result) -> float:
    """Return the larger relative error of loss and gradient."""
    loss = abs(found.loss - expected.loss) / abs(expected.loss)
    gradient = (found.gradient - expected.gradient).abs().max() / expected.gradient.abs().max()
    return max(loss, gradient.item())


PLAIN_K3 = {"beta": 0.3, "use_bias_correction_kl": False}
TRUNCATED = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.3}
OURS_TRUNCATED = {"engine": True, "importance_cap": 1.3}
IN_TWO = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": B // 2}
GSPO = {"importance_sampling_level": "sequence"}

# settings of TRL, settings of ours
AGREE = {
    "token mean": ({"loss_type": "dapo"}, {}),
    "token mean of one micro-batch": ({"loss_type": "bnpo"}, {}),
    "token mean, two micro-batches": ({"loss_type": "dapo", **IN_TWO}, {}),
    "sequence mean": ({"loss_type": "grpo"}, {"weights": "sequence_mean"}),
    "sequence mean, two micro-batches": ({"loss_type": "grpo", **IN_TWO}, {"weights": "sequence_mean"}),
    "Dr. GRPO": ({"loss_type": "dr_grpo"}, {"weights": "longest_completion"}),
    "GSPO": ({"loss_type": "grpo", **GSPO}, {"weights": "sequence_mean", "sequence_ratio": True}),
    "GSPO, token mean": ({"loss_type": "dapo", **GSPO}, {"sequence_ratio": True}),
    "LUSPO": ({"loss_type": "luspo", **GSPO}, {"weights": "sequence_sum", "sequence_ratio": True}),
    "plain k3": ({"loss_type": "dapo", **PLAIN_K3}, {"divergence": "forward_kl_k3", "alpha": 0.3}),
    "plain k3, sequence mean": (
        {"loss_type": "grpo", **PLAIN_K3},
        {"weights": "sequence_mean", "divergence": "forward_kl_k3", "alpha": 0.3},
    ),
    "plain k3, GSPO": (
        {"loss_type": "grpo", **GSPO, **PLAIN_K3},
        {"weights": "sequence_mean", "sequence_ratio": True, "divergence": "forward_kl_k3", "alpha": 0.3},
    ),
    "TRL's default KL": ({"loss_type": "dapo", "beta": 0.3}, {"divergence": "reverse_kl_k3", "alpha": 0.3}),
    "TRL's default KL, sequence mean, two micro-batches": (
        {"loss_type": "grpo", "beta": 0.3, **IN_TWO},
        {"weights": "sequence_mean", "divergence": "reverse_kl_k3", "alpha": 0.3},
    ),
    "truncated importance weights": ({"loss_type": "dapo", **TRUNCATED}, OURS_TRUNCATED),
    "truncated importance weights, plain k3, sequence mean": (
        {"loss_type": "grpo", **TRUNCATED, **PLAIN_K3},
        {**OURS_TRUNCATED, "weights": "sequence_mean", "divergence": "forward_kl_k3", "alpha": 0.3},
    ),
    "entropy bonus, plain k3": (
        {"loss_type": "dapo", "entropy_coef": 0.1, **PLAIN_K3},
        {"beta": 0.1, "divergence": "forward_kl_k3", "alpha": 0.3},
    ),
}


@pytest.mark.parametrize(("trl_settings", "our_settings"), AGREE.values(), ids=AGREE)
def test_loss_and_gradient(run_trl, run_ours, trl_settings, our_settings):
    expected = run_trl(**trl_settings)
    assert abs(expected.loss) > 1e-3 and expected.gradient.abs().max() > 1e-2  # relative to something
    assert relative_error(run_ours(**our_settings), expected) < 1e-5


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_clips_and_metrics(run_trl, run_ours, level):
    """Both count the same clips, for advantages of both signs. KL and entropy are the same means over tokens."""
    expected = run_trl(loss_type="dapo", importance_sampling_level=level, **PLAIN_K3).metrics
    found = run_ours(sequence_ratio=level == "sequence", divergence="forward_kl_k3", alpha=0.3).metrics
    assert expected["clip_ratio/low_mean"] > 0 and expected["clip_ratio/high_mean"] > 0
    if level == "token":  # with sequences TRL's is a mean over sequences
        assert found["clipped"] == pytest.approx(expected["clip_ratio/region_mean"], rel=1e-5)
    assert found["divergence"] == pytest.approx(expected["kl"], rel=1e-5)
    assert found["entropy"] == pytest.approx(expected["entropy"], rel=1e-5)


def test_weights_are_truncated(run_ours):
    assert 0.1 < run_ours(**OURS_TRUNCATED).metrics["importance_capped"] < 0.5


def test_k2_has_the_gradient_of_trl_s_default_kl(run_trl, run_ours):
    """The gradient of w k3, with its weight w, is w (1 - rho + k3) = -w log rho per token: k2's. Values differ."""
    expected = run_trl(loss_type="dapo", beta=0.3)
    found = run_ours(divergence="reverse_kl", alpha=0.3)
    assert relative_error(found._replace(loss=expected.loss), expected) < 1e-5
    assert abs(found.loss - expected.loss) > 1e-2 * abs(expected.loss)


@pytest.mark.parametrize(
    ("corrected", "divergence"),
    [
        *((False, other) for other in ("reverse_kl", "reverse_kl_k3", "forward_kl", "rapo_paper", "none")),
        *((True, other) for other in ("forward_kl_k3", "forward_kl", "rapo_paper", "none")),
    ],
)
def test_another_divergence_is_told_apart(run_trl, run_ours, corrected, divergence):
    expected = run_trl(loss_type="dapo", beta=0.3, use_bias_correction_kl=corrected)
    found = run_ours(divergence=divergence, alpha=0.3)
    assert relative_error(found._replace(loss=expected.loss), expected) > 0.02  # by its gradient alone


@pytest.mark.parametrize(
    ("trl_settings", "our_settings"),
    [
        ({"loss_type": "grpo"}, {}),
        ({"loss_type": "dapo"}, {"weights": "sequence_mean"}),
        ({"loss_type": "dapo"}, {"sequence_ratio": True}),
        ({"loss_type": "dapo", **GSPO}, {}),
        ({"loss_type": "dapo"}, {"clip_high": 0.2}),
        ({"loss_type": "dapo"}, {"clip_low": 0.28}),
        ({"loss_type": "dapo"}, OURS_TRUNCATED),
        ({"loss_type": "dapo", **TRUNCATED}, {"engine": True}),
        ({"loss_type": "dapo", "entropy_coef": 0.1}, {}),
    ],
)
def test_another_setting_is_told_apart(run_trl, run_ours, trl_settings, our_settings):
    assert relative_error(run_ours(**our_settings), run_trl(**trl_settings)) > 0.01
