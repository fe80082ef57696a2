"""`schedule_worker.py FOLDER SETTINGS` on one process: report the learning rate of each optimizer step.

For "linear without warm-up" also report those of schedules that were saved and loaded: "resumed", and "resumed earlier"
from a checkpoint of a version whose last step was not at min_lr. Also report a run of "one step".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_rapo.mcore.optimizer import make_scheduler
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.scoring.objective import loss_function
from tests.groups import end_groups
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.runs import recorded_rollout, tiny_config


def following(policy: Policy, state: dict[str, Any]) -> list[float]:
    """Load `state` into a new schedule, and return the rates of the remaining steps."""
    scheduler = make_scheduler(policy.config, policy.optimizer)
    scheduler.load_state_dict(state)
    rates = []
    for _ in range(state["num_steps"], 3 * 2):
        scheduler.step(1)
        rates.append(policy.optimizer.param_groups[0]["lr"])
    return rates


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    init_process_group(timeout_s=COLLECTIVE_S)
    rollout = recorded_rollout(folder, count=4)
    rates: dict[str, Any] = {}
    for name, optimizer in settings.items():
        config = tiny_config(
            folder,
            folder,
            run={"steps": 3},
            batch={"optimizer_steps_per_rollout": 2},
            optimizer=optimizer,
        )
        policy = Policy(config, read_shape(folder), init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0))
        (scored,) = policy.score([policy.pack(rollout)])
        loss = loss_function(config, policy.sequence_mean)
        rates[name] = [policy.train_step(scored, loss).means["lr"] for _ in range(3 * 2)]
        if name == "linear without warm-up":
            saved = policy.scheduler.state_dict()
            rates["resumed"] = {n: following(policy, {**saved, "num_steps": n}) for n in (1, 3, 5)}
            earlier = {**saved, "lr_warmup_steps": 0, "lr_decay_steps": 7}
            rates["resumed earlier"] = {n: following(policy, {**earlier, "num_steps": n}) for n in (1, 3, 5)}
            of_one = config.model_copy(
                update={
                    "run": config.run.model_copy(update={"steps": 1}),
                    "batch": config.batch.model_copy(update={"optimizer_steps_per_rollout": 1}),
                }
            )
            scheduler = make_scheduler(of_one, policy.optimizer)
            scheduler.step(1)
            rates["one step"] = [policy.optimizer.param_groups[0]["lr"]]
        end_groups()
    write_result(rates)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
