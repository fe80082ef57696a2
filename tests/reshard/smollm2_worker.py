"""`smollm2_worker.py MODEL FOLDER` on 2 processes: a real model in Megatron (PP2) and in two engines (TP1)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_rapo.data import load_tokenizer
from megatron_rapo.rewards import Rewards
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.runtime.distributed import init_process_group
from megatron_rapo.verifier import VerifierPool
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.reshard.engine_parity_worker import follow
from tests.runs import tiny_config, token_log_probs
from tests.tiny_models import load_reference


def main(model: Path, folder: Path) -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    config = tiny_config(
        model,
        folder,
        parallel={"pipeline": 2},
        batch={"tokens_per_microbatch": 512},
        optimizer={"lr": 1e-4},
        rollout={"max_completion_tokens": 24, "kv_cache_mib": 256},
    )
    engine = Engine(model, config.rollout, dtype="float32", max_sequence_tokens=256, seed=0)
    results = capital_of_france(engine, model)
    with VerifierPool(1, 5.0) as verifier:
        results |= follow(Sampler(engine, verifier, Rewards(config.reward)), config)
    engine.close()
    if dist.get_rank() == 0:
        write_result(results)
    dist.destroy_process_group()


def capital_of_france(engine: Engine, model: Path) -> dict[str, Any]:
    """Return the engine's text and the difference of its log-probabilities from transformers'."""
    prompt = tuple(load_tokenizer(model).encode("The capital of France is"))
    [answer] = engine.generate([prompt], Sampling(temperature=0, max_completion_tokens=8), [0])
    tokens = np.concatenate([np.array(prompt, dtype=np.int32), answer.token_ids])
    expected = token_log_probs(load_reference(model), tokens, 1.0)[len(prompt) - 1 :]
    return {"answer": answer.text, "gap to transformers": float(np.abs(answer.logprobs - expected).max())}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
