"""`engine_parity_worker.py MODEL FOLDER ENGINE_TENSOR` on 2 processes: compare engines with the trainer."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.engine_fp8_rounding import linears_in_fp8
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.reshard.transfer import Resharder, make_resharder
from megatron_rapo.rewards import Rewards
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.rollout.sampler import Sampler, sampling_seed
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function, to_sequences
from megatron_rapo.types import Group, Problem, Prompt
from megatron_rapo.verifier import VerifierPool
from tests.groups import end_groups
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.runs import tiny_config

TRAINER_LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor": 2},
    "PP2": {"pipeline": 2},
    "DP2": {},
}
SEED = 7

# With an eps of the size of the gradients an update is a smooth function of them. With the usual one it is their sign:
# a coin toss where rounding decides it, and layouts that differ in it differ in sampled tokens.
OPTIMIZER = {"lr": 1e-2, "eps": 1e-3}


def main() -> None:
    model, folder, engine_tensor = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    init_process_group(timeout_s=COLLECTIVE_S)
    rollout = {"tensor": engine_tensor, "max_completion_tokens": 24}
    config = tiny_config(model, folder, rollout=rollout)
    engine = Engine(model, config.rollout, dtype="float32", max_sequence_tokens=256, seed=0)
    results: dict[str, Any] = {}
    with VerifierPool(1, 5.0) as verifier:
        sampler = Sampler(engine, verifier, Rewards(config.reward))
        for name, parallel in TRAINER_LAYOUTS.items():
            batch = {"tokens_per_microbatch": 512}  # the long prompt has 150
            trainer = tiny_config(model, folder, parallel=parallel, batch=batch, rollout=rollout, optimizer=OPTIMIZER)
            results[name] = follow(sampler, trainer)
            end_groups()
    engine.close()
    results["FP8"] = in_fp8(model, folder, engine_tensor)
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def in_fp8(model: Path, folder: Path, engine_tensor: int) -> dict[str, Any]:
    """Measure an FP8 engine beside a bfloat16 trainer: the gap and its parts, and the difference of weights."""
    config = tiny_config(
        model,
        folder,
        precision={"dtype": "bfloat16"},
        parallel={"tensor": 2},
        rollout={"tensor": engine_tensor, "fp8": True},
        batch={"tokens_per_microbatch": 512},
    )
    shape = read_shape(model)
    policy = Policy(config, shape, init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0))
    engine = Engine(model, config.rollout, dtype="bfloat16", max_sequence_tokens=256, seed=0)
    reshard(make_resharder(config, shape, policy.norms, policy.parameters), engine, version=0)
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}
    with VerifierPool(1, 5.0) as verifier:
        batches = scored(Sampler(engine, verifier, Rewards(config.reward)), policy, config)
    parts = policy.gap_parts(batches)
    with linears_in_fp8(policy.parameters, policy.parallel.tensor_group):
        off = {name: largest_difference(policy, engine, name) for name in ("linear_proj", "linear_fc2")}
    engine.close()
    end_groups()
    return {
        "gap": policy.diagnostics(batches)["rollout/logprob_gap_mean"],
        "parts": parts,
        "off": off,
        "kept": all(torch.equal(before[name], parameter) for name, parameter in policy.parameters.items()),
    }


def largest_difference(policy: Policy, engine: Engine, linear: str) -> float:
    """Return the largest difference of the first layer's weights from the trainer's, in units of each row's scale."""
    ours, theirs = {"linear_proj": ("self_attention", "self_attn.o_proj"), "linear_fc2": ("mlp", "mlp.down_proj")}[
        linear
    ]
    [model] = engine._llm.apply_model(lambda model: model)
    module = model.get_submodule(f"model.layers.0.{theirs}")
    held = module.weight.t().float() * module.weight_scale
    mine = policy.parameters[f"decoder.layers.0.{ours}.{linear}.weight"].float()
    if engine.replica_size == 1:
        held = held.chunk(2, dim=1)[policy.parallel.tensor_group.rank()]
    return float(((mine - held).abs() / module.weight_scale).max())


def follow(sampler: Sampler, config: Config) -> dict[str, Any]:
    """Return log-probability gaps: before an update, after it without resharding, and then with resharding."""
    parallel = init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0)
    shape = read_shape(config.model.path)
    policy = Policy(config, shape, parallel)
    resharder = make_resharder(config, shape, policy.norms, policy.parameters)
    reshard(resharder, sampler.engine, version=0)
    found: dict[str, Any] = {"before": gap(sampler, policy, config)}
    policy.train_step(scored(sampler, policy, config), loss_function(config, policy.sequence_mean))
    found["stale"] = gap(sampler, policy, config)
    reshard(resharder, sampler.engine, version=1)
    found["after"] = gap(sampler, policy, config)
    found["version"] = sampler.engine.weight_version
    found["tokens"] = [c.token_ids.tolist() for g in sample(sampler) for c in g.completions]
    return found


def reshard(resharder: Resharder, engine: Engine, *, version: int) -> None:
    with engine.updating(version) as weights:
        resharder.run(weights, version=version, prove=True)


def sample(sampler: Sampler) -> list[Group]:
    """Sample from a short prompt and from one that fills a block of vLLM's prefix cache (128 tokens)."""
    texts = ["1+1=", "17*3+5\n", "abcd " * 30, "7*8\n"]
    prompts = [
        Prompt(
            problem=Problem(id=str(i), text=text, answer="2"),
            text=text,
            token_ids=tuple(ord(c) % 90 + 3 for c in text),
        )
        for i, text in enumerate(texts)
    ]
    sampling = Sampling(temperature=1.0, max_completion_tokens=24)
    return sampler.judge(sampler.complete(prompts, 2, sampling, partial(sampling_seed, SEED)))


def scored(sampler: Sampler, policy: Policy, config: Config) -> list[Any]:
    (batches,) = policy.score([policy.pack(to_sequences(sample(sampler), config))])
    return batches


def gap(sampler: Sampler, policy: Policy, config: Config) -> float:
    return policy.diagnostics(scored(sampler, policy, config))["rollout/logprob_gap_max"]


if __name__ == "__main__":
    main()
