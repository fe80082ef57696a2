"""Started on one process: `schedule_worker.py FOLDER SETTINGS`; the rate that each optimizer step is taken with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from megatron_rapo.distributed import init_process_group
from megatron_rapo.hf import read_shape
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.objective import loss_function
from tests.groups import end_groups
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.runs import recorded_rollout, tiny_config


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    init_process_group(timeout_s=COLLECTIVE_S)
    rollout = recorded_rollout(folder, count=4)
    rates = {}
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
        end_groups()
    write_result(rates)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
