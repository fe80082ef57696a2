"""Started on one process with a GPU: `memory_worker.py FOLDER CASE`; a short run with a case's [memory]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rapo.config import Config
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.reshard.transfer import make_resharder
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from tests.gpu.test_memory import CASES
from tests.launch import write_result
from tests.runs import recorded_rollout, tiny_config

STEPS = 3
PROMPTS = [(20, 14, 20, 32), tuple(3 + (7 * i) % 95 for i in range(200))]


def main(folder: Path, case: str) -> None:
    init_process_group(timeout_s=120.0)
    config = tiny_config(
        folder / "model",
        folder,
        precision={"dtype": "bfloat16"},
        rollout={"kv_cache_mib": 512},
        memory=CASES[case],
    )
    write_result(train(config, recorded_rollout(folder / "model")))
    dist.destroy_process_group()


def train(config: Config, rollout: Any) -> dict[str, Any]:
    """Greedy answers after each step, gradient norms, and the device's memory in use while training and sampling."""
    shape = read_shape(config.model.path)
    policy = Policy(config, shape, init_parallel(config.parallel, timeout_s=120.0, seed=0))
    engine = Engine(
        config.model.path,
        config.rollout,
        dtype="bfloat16",
        max_sequence_tokens=256,
        seed=0,
        sleeps=config.memory.engine_sleep,
    )
    resharder = make_resharder(config, shape, policy.norms, policy.parameters)
    found: dict[str, Any] = {"answers": [], "norms": [], "training_mib": [], "sampling_mib": []}
    for step in range(STEPS):
        with engine.updating(step) as weights:
            resharder.run(weights, version=step, prove=True)
        answers = engine.generate(PROMPTS, Sampling(temperature=0, max_completion_tokens=16), [0] * len(PROMPTS))
        found["answers"].append([answer.token_ids.tolist() for answer in answers])
        found["sampling_mib"].append(used_mib())
        engine.sleep()
        [scored] = policy.score([policy.pack(rollout)])
        with policy.training_state.in_place():
            means = policy.train_step(scored, loss_function(config, policy.sequence_mean)).means
            found["training_mib"].append(used_mib())
        found["norms"].append(means["grad_norm"])
    engine.close()
    return found


def used_mib() -> float:
    """What is taken of the device, by torch's reserve and by vLLM alike."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
