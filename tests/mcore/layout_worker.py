"""`layout_worker.py MODELS` on several processes: run the same rollout under each layout of that many."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file, save_file

from megatron_rapo.config import Config
from megatron_rapo.mcore.forward_backward import LossFunction
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.monitor import Monitor
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from megatron_rapo.scoring.packing import PackedBatch
from megatron_rapo.training.run_controls import RunControls
from megatron_rapo.training.trainer import Trainer
from megatron_rapo.types import TrainingSequence
from tests import runs, tiny_models
from tests.groups import end_groups
from tests.launch import write_result
from tests.mcore.layouts import ALL, MEASURED, MEASURED_LAYOUTS, SAMPLED, SETTINGS, SHARED_PROMPTS, TRAINED, Layout
from tests.patience import COLLECTIVE_S
from tests.runs import tiny_config, token_log_probs

# Adam's first update is lr * g / (|g| + eps). With the usual eps it is lr * sign(g): blind to a gradient that is wrong
# by a factor, and a coin toss where rounding decides the sign of a gradient near 0. With an eps of the size of the
# gradients it is a smooth function of their values, which layouts must agree on.
OPTIMIZER = {"eps": 1e-3, "lr": 1.25e-3, "schedule": "linear"}  # rates from 1e-3 on, which tell the steps apart
load_reference = functools.cache(tiny_models.load_reference)
recorded_rollout = functools.cache(runs.recorded_rollout)


def main() -> None:
    folder = Path(sys.argv[1])
    init_process_group(timeout_s=COLLECTIVE_S)
    results = {
        name: of_layout(folder, name, layout) for name, layout in ALL.items() if layout.nproc == dist.get_world_size()
    }
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def of_layout(folder: Path, name: str, layout: Layout) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for setting in (setting for trained, setting in TRAINED if trained == name):
        config, policy, rollout = build(folder, layout, SETTINGS[setting])
        if setting == SAMPLED:
            results |= compare(policy, rollout, folder / layout.model)
        results[setting] = train(policy, config, rollout, save=name.startswith("TP1 "), name=setting)
        end_groups()
    if name in MEASURED_LAYOUTS:
        config, policy, rollout = build(folder, layout, SETTINGS[SAMPLED])
        results[MEASURED] = train_with_measurements(policy, config, rollout)
        end_groups()
    for share in SHARED_PROMPTS.get(name, ()):
        config, policy, rollout = build(
            folder, layout, {"batch": {"share_prompts": share, "tokens_per_microbatch": 512}}
        )
        results[f"share_prompts={share}"] = train_on_groups(policy, config, rollout, save=not share)
        end_groups()
    return results


def build(
    folder: Path, layout: Layout, sections: dict[str, dict[str, Any]]
) -> tuple[Config, Policy, Sequence[TrainingSequence]]:
    model, of_layout = folder / layout.model, dict(layout.sections)
    of_layout["optimizer"] = OPTIMIZER | of_layout.get("optimizer", {})
    config = tiny_config(model, folder, **of_layout, **sections)
    rollout = recorded_rollout(
        model, temperature=config.rollout.temperature, by_sequence=config.algorithm.aggregation == "sequence"
    )
    parallel = init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0)
    return config, Policy(config, read_shape(model), parallel), rollout


def compare(policy: Policy, rollout: Sequence[TrainingSequence], model: Path) -> dict[str, Any]:
    """Compare everything before the first update, with transformers and by hand."""
    batches, reference = policy.pack(rollout), load_reference(model)
    logits = over_all_ranks(compare_logits(policy, batches, rollout, reference))
    parts = [rollout[:5], rollout[5:]]  # as optimizer steps of their own
    scored, *scored_parts = policy.score([batches, *(policy.pack(part) for part in parts)])
    old, ref = Comparison(), Comparison()
    for sequences, of_step in zip([rollout, *parts], [scored, *scored_parts], strict=True):
        compare_log_probs(policy, of_step, sequences, reference, old, ref)
    return {
        "sizes": [len(batch.token_ids_T) for batch in batches],
        "filled_up": float(torch.cat([batch.sequence_T for batch in batches]).lt(0).float().mean()),
        "logits": logits,
        "round_trip": bitwise_equal(policy, model),
        "policy": over_all_ranks(old),
        "reference": over_all_ranks(ref),
        "chosen": compare_chosen(policy, scored_parts, parts, reference),
        "sequence_mean": over_all_ranks(compare_sequence_means(policy, batches, rollout)),
        "diagnostics": diagnose(policy, scored),
        "no_sequence_earned_enough": diagnose(policy, [replace(b, reward_T=0 * b.reward_T) for b in scored]),
        "beyond_the_histogram": diagnose(policy, [spread(b) for b in scored]),
    }


def train(
    policy: Policy, config: Config, rollout: Sequence[TrainingSequence], *, save: bool, name: str
) -> dict[str, Any]:
    """Take three steps on the rollout. Old log-probabilities come from the first training pass."""
    (referenced,) = policy.score_reference([policy.pack(rollout)])
    loss = loss_function(config, policy.sequence_mean)
    first = policy.train_step(referenced, loss)
    scored = first.batches or referenced
    steps = [first.means]
    errors = update_errors(policy, config.model.path, f"{name}.safetensors", save=save)
    steps += [policy.train_step(scored, loss).means for _ in range(2)]
    return {"steps": steps, "update_errors": errors, "weights": digest(policy)}


def train_on_groups(
    policy: Policy, config: Config, rollout: Sequence[TrainingSequence], *, save: bool
) -> dict[str, Any]:
    """Train with completions of three prompts, twice."""
    reference = load_reference(config.model.path)
    groups = [grouped for i in (0, 4, 8) for grouped in with_one_prompt(rollout[i : i + 4], reference)] * 2
    batches = policy.pack(groups)
    (scored,) = policy.score([batches])
    old, ref = Comparison(), Comparison()
    compare_log_probs(policy, scored, groups, reference, old, ref)
    found = {
        "sizes": [len(batch.token_ids_T) for batch in batches],
        "policy": over_all_ranks(old),
        "reference": over_all_ranks(ref),
    }
    return found | train(policy, config, groups, save=save, name="groups")


def with_one_prompt(sequences: Sequence[TrainingSequence], reference: torch.nn.Module) -> list[TrainingSequence]:
    """Give all completions one prompt, their prompts in a row, with transformers' log-probabilities."""
    prompt = np.concatenate([s.token_ids[: s.prompt_length] for s in sequences])
    found = []
    for sequence in sequences:
        token_ids = np.concatenate([prompt, sequence.token_ids[sequence.prompt_length :]])
        logp = token_log_probs(reference, token_ids)[len(prompt) - 1 :].astype(np.float32)
        found.append(replace(sequence, token_ids=token_ids, prompt_length=len(prompt), engine_logprobs=logp))
    return found


def train_with_measurements(policy: Policy, config: Config, rollout: Sequence[TrainingSequence]) -> dict[str, Any]:
    """Train with a scoring pass, and measure gradient norms before each step."""
    (scored,) = policy.score([policy.pack(rollout)])
    alpha = config.algorithm.alpha

    def norm(batches: Sequence[PackedBatch], **settings: float) -> float:
        return policy.gradient_norm(batches, loss_with(policy, config, **settings))

    def parts(batches: Sequence[PackedBatch]) -> dict[str, float]:
        return {"divergence": norm(unrewarded(batches), beta=0.0), "rest": norm(batches, alpha=0.0)}

    controls = RunControls(monitor=Monitor(), profiler=None, signals=None)
    without = {"weight_sync": None, "sampler": None, "inputs": None}  # only a whole run needs them
    trainer = Trainer(config, policy=policy, controls=controls, train_prompts=[None], **without)
    first = scored[: config.parallel.pipeline]  # what the trainer measures
    measured = {
        "norms": parts(scored)
        | {
            "whole": norm(scored),
            "divergence, alpha doubled": norm(unrewarded(scored), alpha=2 * alpha, beta=0.0),
            "nothing": norm(unrewarded(scored), alpha=0.0, beta=0.0),
        },
        "shares": trainer._gradient_shares(scored),
        "norms_of_shares": {
            "": parts(first),
            "/low_reward": parts([b.only(b.reward_T < 0.5) for b in first]),
            "/high_reward": parts([b.only(b.reward_T >= 0.5) for b in first]),
        },
    }
    steps, whole = [], []
    for _ in range(3):
        whole.append(norm(scored))
        steps.append(policy.train_step(scored, loss_with(policy, config)).means)
    return measured | {"steps": steps, "norms_before_steps": whole, "weights": digest(policy)}


def unrewarded(batches: Sequence[PackedBatch]) -> list[PackedBatch]:
    return [replace(batch, advantage_T=torch.zeros_like(batch.advantage_T)) for batch in batches]


def loss_with(policy: Policy, config: Config, **settings: float) -> LossFunction:
    algorithm = config.algorithm.model_copy(update=settings)
    return loss_function(config.model_copy(update={"algorithm": algorithm}), policy.sequence_mean)


def digest(policy: Policy) -> str:
    """Return a digest of every bit of the weights."""
    content = hashlib.sha256()
    for name, tensor in policy.hf_tensors():
        content.update(name.encode())
        content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def spread(batch: PackedBatch) -> PackedBatch:
    """Give each token a log-ratio of up to 30 nats that depends only on the token."""
    if batch.old_logp_T is None:
        return batch
    return replace(batch, ref_logp_T=batch.old_logp_T + 30 * torch.sin(batch.targets_T.float()))


def diagnose(policy: Policy, scored: Sequence[PackedBatch]) -> dict[str, Any]:
    """Return the scalars, and log-ratio, reward, gap and staleness of each token of all ranks."""
    mine = []
    if policy.parallel.is_last_stage and policy.parallel.tensor_group.rank() == 0:
        for batch in scored:
            log_rho_T, gap_T = batch.ref_logp_T - batch.old_logp_T, (batch.engine_logp_T - batch.old_logp_T).abs()
            chosen_4T = torch.stack([log_rho_T, batch.reward_T, gap_T, batch.stale_T.float()])
            mine += chosen_4T[:, batch.mask_T].T.tolist()
    everyone: list[list[list[float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    scalars = policy.diagnostics(scored)
    return {"scalars": scalars, "tokens": [row for rows in everyone for row in rows]}


def compare_sequence_means(
    policy: Policy, batches: Sequence[PackedBatch], rollout: Sequence[TrainingSequence]
) -> Comparison:
    """Compare means of token positions: halfway between the first and the last that the loss counts."""
    comparison = Comparison()
    for batch in batches:
        found_T = policy.sequence_mean(batch.position_T.float(), batch)
        halfway = [(s.prompt_length + len(s.token_ids) - 3) / 2 if s.in_loss else 0.0 for s in rollout]
        real_T = batch.sequence_T >= 0
        if policy.parallel.is_last_stage:
            comparison.add(found_T[real_T], torch.tensor(halfway)[batch.sequence_T[real_T]])
    return comparison


@dataclass
class Comparison:
    """Compares this rank's values with those of transformers."""

    error: float = 0.0  # largest |difference|
    tokens: int = 0

    def add(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        if len(found):
            self.error = max(self.error, float((found - expected).abs().max()))
            self.tokens += len(found)


def over_all_ranks(comparison: Comparison) -> dict[str, float]:
    """Count every token once: only on the first rank of a tensor-parallel group."""
    group = parallel_state.get_tensor_model_parallel_group()
    error = torch.tensor(comparison.error)
    tokens = torch.tensor(comparison.tokens if group.rank() == 0 else 0)
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    dist.all_reduce(tokens, op=dist.ReduceOp.SUM)
    return {"error": float(error), "tokens": int(tokens)}


@torch.no_grad()
def compare_logits(
    policy: Policy, batches: Sequence[PackedBatch], rollout: Sequence[TrainingSequence], reference: torch.nn.Module
) -> Comparison:
    """Compare Megatron's logits of every token of the rollout, on the last pipeline stage."""

    def forward(data: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        return policy._passes._hidden(chunk, next(data)), lambda hidden, non_loss_data: hidden

    for chunk in policy.wrapped:
        chunk.eval()
    sizes = [len(batch.token_ids_T) for batch in batches]
    found = policy._passes._run(forward, batches, sizes, forward_only=True, collect_non_loss_data=True)
    assert len(found) == (len(batches) if policy.parallel.is_last_stage else 0)
    comparison, group = Comparison(), policy.parallel.tensor_group
    weight = policy._passes.head_weight
    for batch, hidden_TD in zip(batches, found, strict=False):
        logits_TVp = hidden_TD @ weight.T
        parts = [torch.empty_like(logits_TVp) for _ in range(group.size())]
        dist.all_gather(parts, logits_TVp.contiguous(), group=group)
        logits_TV = torch.cat(parts, dim=-1)
        place_T = batch.position_T
        for index in batch.sequence_T[batch.sequence_T >= 0].unique().tolist():
            token_ids = torch.from_numpy(rollout[index].token_ids.astype(np.int64))
            expected = reference(token_ids[None]).logits[0]
            chosen = batch.sequence_T == index
            assert torch.equal(batch.token_ids_T[chosen], token_ids[place_T[chosen]])
            comparison.add(logits_TV[chosen, : expected.shape[-1]], expected[place_T[chosen]])
    return comparison


def compare_log_probs(
    policy: Policy,
    scored: list[PackedBatch],
    rollout: Sequence[TrainingSequence],
    reference: torch.nn.Module,
    old: Comparison,
    ref: Comparison,
) -> None:
    """Compare log-probabilities of sampled tokens by policy and reweighted reference, on the last pipeline stage."""
    for batch in scored:
        assert (batch.old_logp_T is None) == (batch.ref_logp_T is None) == (not policy.parallel.is_last_stage)
        if batch.old_logp_T is None or batch.ref_logp_T is None:
            continue
        place_T = batch.position_T
        for index in batch.sequence_T[batch.mask_T].unique().tolist():
            sequence = rollout[index]
            chosen = (batch.sequence_T == index) & batch.mask_T
            for comparison, found_T, scale in ((old, batch.old_logp_T, 1.0), (ref, batch.ref_logp_T, sequence.phi)):
                expected = torch.from_numpy(token_log_probs(reference, sequence.token_ids, scale))
                comparison.add(found_T[chosen], expected[place_T[chosen]])


def compare_chosen(
    policy: Policy,
    steps: Sequence[Sequence[PackedBatch]],
    rollout: Sequence[Sequence[TrainingSequence]],
    reference: torch.nn.Module,
) -> dict[str, float]:
    """Compare log-probabilities of some completions on the first process. The loss excludes the second one."""
    places = [(0, 0), (0, 2), (1, 3), (1, 6)]
    comparison, chosen = Comparison(), {(step, index): rollout[step][index] for step, index in places}
    for place, found in policy.token_log_probs(steps, chosen).items():
        sequence = chosen[place]
        for found_L, scale in ((found.policy_L, 1.0), (found.reference_L, sequence.phi)):
            expected = token_log_probs(reference, sequence.token_ids, scale)[sequence.prompt_length - 1 :]
            comparison.add(torch.from_numpy(found_L), torch.from_numpy(expected))
    assert (comparison.tokens > 0) == (dist.get_rank() == 0)
    return {"error": comparison.error, "tokens": comparison.tokens}


def bitwise_equal(policy: Policy, model: Path) -> bool:
    """Return whether the gathered HF tensors equal the model's file on every rank: names and every bit."""
    expected, found = load_file(model / "model.safetensors"), dict(policy.hf_tensors())
    equal = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    verdict = torch.tensor(int(equal))
    dist.all_reduce(verdict, op=dist.ReduceOp.MIN)
    return bool(verdict)


def update_errors(policy: Policy, model: Path, file: str, *, save: bool) -> dict[str, float]:
    """Return |this layout's update - one process's| / |one process's| by HF tensor (L2 norms).

    Each is the largest of all ranks. A file has the update of one process.
    """
    before = load_file(model / "model.safetensors")
    update = {name: tensor.float() - before[name] for name, tensor in policy.hf_tensors()}
    if save:
        save_file(update, model / file)
    expected = load_file(model / file)
    assert update.keys() == expected.keys()
    errors = torch.stack([(update[name] - u).norm() / u.norm() for name, u in expected.items()])
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    return dict(zip(expected, errors.tolist(), strict=True))


if __name__ == "__main__":
    main()
