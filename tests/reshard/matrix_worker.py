"""`matrix_worker.py FOLDER` on 2 and 4 processes: reshard every layout into engines, compare with a fresh engine.

An engine is built from the folder `old` of a model, and gets the weights of `new` from a trainer of one layout, those
of `old` back from one of the next, and so on. What it then holds and says is compared with an engine that was built
from the Hugging Face export of `new`, or with what it held itself when it was built from `old`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rapo.config import Config
from megatron_rapo.mcore.parallel import init_parallel
from megatron_rapo.mcore.policy import Policy
from megatron_rapo.models import read_shape, save_folder
from megatron_rapo.models.parameter_map import hf_shapes
from megatron_rapo.reshard.transfer import make_resharder
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.runtime.distributed import init_process_group
from tests.groups import end_groups
from tests.launch import write_result
from tests.patience import COLLECTIVE_S
from tests.runs import tiny_config

TENSOR, PIPELINE, VIRTUAL = {"tensor": 2}, {"pipeline": 2}, {"virtual_pipeline": 2}
EVERY = {"TP1": {}, "PP2": PIPELINE, "PP2 x VPP2": PIPELINE | VIRTUAL, "TP2": TENSOR}
BOTH = {"TP2 x PP2": TENSOR | PIPELINE}


@dataclass(frozen=True)
class Case:
    nproc: int
    engine: int  # tensor-parallel size
    layouts: dict[str, dict[str, int]]  # of the trainer: [parallel]
    model: str
    packed: bool = False
    fp8: bool = False


SIZES = {"hidden_size": 128, "num_layers": 5, "num_heads": 4}  # layers that two stages do not divide
MODELS: dict[str, dict[str, Any]] = {  # vocabularies that two ranks, and vLLM's 64, do not divide
    "untied": {"tied": False, "num_kv_heads": 2, "vocab_size": 131},
    "tied": {"tied": True, "num_kv_heads": 2, "vocab_size": 133},
    "1 KV head": {"tied": True, "num_kv_heads": 1, "vocab_size": 130},
    "qwen3": {"tied": False, "num_kv_heads": 2, "vocab_size": 131, "family": "qwen3"},
    "llama": {"tied": True, "num_kv_heads": 2, "vocab_size": 131, "family": "llama"},
    "mistral": {"tied": False, "num_kv_heads": 2, "vocab_size": 131, "family": "mistral", "head_dim": 64},
}
CASES = {
    "untied -> TP1": Case(2, 1, EVERY, "untied"),
    "untied -> TP2": Case(2, 2, EVERY, "untied"),
    "tied -> TP1": Case(2, 1, EVERY, "tied"),
    "tied -> TP2": Case(2, 2, EVERY, "tied"),
    "1 KV head -> TP1": Case(2, 1, EVERY, "1 KV head"),
    "1 KV head -> TP2": Case(2, 2, EVERY, "1 KV head"),
    "qwen3 -> TP2": Case(2, 2, {"TP2": TENSOR}, "qwen3"),
    "llama -> TP1": Case(2, 1, {"PP2": PIPELINE}, "llama"),
    "mistral -> TP2": Case(2, 2, {"TP2": TENSOR}, "mistral"),
    "tied, packed -> TP1": Case(2, 1, {"TP2": TENSOR}, "tied", packed=True),
    "untied, packed -> TP2": Case(2, 2, {"PP2": PIPELINE}, "untied", packed=True),
    "tied, FP8 -> TP1": Case(2, 1, {"TP2": TENSOR}, "tied", fp8=True),
    "untied, FP8 -> TP2": Case(2, 2, {"PP2": PIPELINE}, "untied", fp8=True),
    "TP2 x PP2, untied -> TP1": Case(4, 1, BOTH, "untied"),
    "TP2 x PP2, tied -> TP2": Case(4, 2, BOTH, "tied"),
}
LONG = tuple(3 + (7 * i) % 95 for i in range(200))  # more than a block of 128 tokens of vLLM's prefix cache
PROMPTS = [(20, 14, 20, 32), LONG, LONG[:140], (5,)]


def main(folder: Path) -> None:
    init_process_group(timeout_s=COLLECTIVE_S)
    here = {name: case for name, case in CASES.items() if case.nproc == dist.get_world_size()}
    results = {name: compare(folder / case.model, case) for name, case in here.items()}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, results)
    if dist.get_rank() == 0:
        write_result({"ranks": everyone})
    dist.destroy_process_group()


def compare(folder: Path, case: Case) -> dict[str, Any]:
    """Reshard layout by layout, alternately with the weights of `new` and `old`, so that each changes something."""
    rollout = {"tensor": case.engine, "packed": case.packed, "fp8": case.fp8}
    sections = {"rollout": rollout, "precision": {"dtype": "bfloat16" if case.fp8 else "float32"}}
    export = folder / f"export-{sections['precision']['dtype']}"
    found: dict[str, Any] = {}
    states = {}
    with engine_of(folder / "old", folder, sections) as engine:
        old = before = state(engine)
        for version, (name, parallel) in enumerate(case.layouts.items()):
            model, to = ("old", None) if version % 2 else ("new", export)
            reshard(tiny_config(folder / model, folder, parallel=parallel, **sections), engine, version, to)
            states[name] = model, state(engine)
            found[f"{name}, moved"] = not any(same(states[name][1], before).values())
            before = states[name][1]
    with engine_of(export, folder, sections) as fresh:
        expected = {"new": state(fresh), "old": old}
    for name, (model, after) in states.items():
        found[name] = same(after, expected[model])
    return found | {"parameters": len(old[0])}


@contextmanager
def engine_of(model: Path, folder: Path, sections: dict[str, Any]) -> Iterator[Engine]:
    config = tiny_config(model, folder, **sections)
    engine = Engine(model, config.rollout, dtype=config.precision.dtype, max_sequence_tokens=256, seed=0)
    try:
        yield engine
    finally:
        engine.close()
        gc.freeze()  # vLLM has just searched everything, which need not be searched again for each layout


def reshard(config: Config, engine: Engine, version: int, export: Path | None) -> None:
    shape = read_shape(config.model.path)
    policy = Policy(config, shape, init_parallel(config.parallel, timeout_s=COLLECTIVE_S, seed=0))
    resharder = make_resharder(config, shape, policy.norms, policy.parameters)
    with engine.updating(version) as weights:
        resharder.run(weights, version=version, prove=True)
    if export:
        tensors = policy.hf_tensors()
        if dist.get_rank() == 0 and not export.exists():
            dtype = getattr(torch, config.precision.dtype)
            save_folder(export, tensors, shapes=hf_shapes(shape), dtype=dtype, like=config.model.path)
        else:
            for _ in tensors:
                pass
        dist.barrier()
    end_groups()


def state(engine: Engine) -> tuple[dict[str, Tensor], list[Any]]:
    """Return every parameter of the engine on this rank, padding included, and its greedy answers."""
    [model] = engine._llm.apply_model(lambda model: model)
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    answers = engine.generate(PROMPTS, Sampling(temperature=0, max_completion_tokens=8), [0] * len(PROMPTS))
    return parameters, [(a.token_ids.tolist(), a.logprobs.tolist()) for a in answers]


def same(found: tuple[dict[str, Tensor], list[Any]], expected: tuple[dict[str, Tensor], list[Any]]) -> dict[str, bool]:
    """Compare bit by bit, also the log-probabilities: they come from the same arithmetic in the same process."""
    names = found[0].keys() == expected[0].keys()
    tensors = names and all(torch.equal(found[0][name], tensor) for name, tensor in expected[0].items())
    return {"tensors": tensors, "answers": found[1] == expected[1]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
