"""`python -m tests.gpu.small_worker FOLDER` without a GPU: all workers and benchmarks for one, at a tiny size."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from benchmarks.gpu import reshard, training
from benchmarks.gpu.settings import TORCH
from benchmarks.models import QWEN2_SMALL, write_model
from megatron_rapo.runtime.distributed import init_process_group
from tests.gpu import checkpoint_worker, precision_worker
from tests.launch import write_result


def main(folder: Path) -> None:
    init_process_group(timeout_s=120.0)
    model = folder / "model"
    write_model(model, QWEN2_SMALL, tokenizer=True)
    step = precision_worker.Step(length=64, microbatches=2, tokens_per_microbatch=256, lr=1e-3)
    cases = {TORCH: {}, "float32": {"precision": {"dtype": "float32"}}}
    write_result(
        {
            "training": training.measure_all(training.SMALL, QWEN2_SMALL, repeats=1),
            "precision": precision_worker.train_all(model, cases, step),
            "checkpoint": checkpoint_worker.round_trips(model, folder, [TORCH]),
            "reshard": reshard.measure(model, kv_cache_mib=reshard.SMALL_KV_CACHE_MIB, repeats=1),
        }
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
