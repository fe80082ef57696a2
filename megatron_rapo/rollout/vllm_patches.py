"""Patches that keep vLLM from disturbing the trainer, which runs in the same process, and other jobs.

The behaviour described here was seen in vLLM 0.32.0. By its source, 0.26.0 has the same interface; that was not run.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_rapo.runtime import gc_control
from megatron_rapo.runtime.patching import patched

TESTED_VERSION = "0.32"
INTERFACE = {
    "vllm.inputs": ("tokens_input",),
    "vllm.sampling_params": ("RequestOutputKind",),
    "vllm.v1.engine.detokenizer": ("IncrementalDetokenizer",),
    "vllm.distributed.parallel_state": ("_WORLD", "_NODE_COUNT", "destroy_model_parallel"),
    "vllm.v1.executor.uniproc_executor": ("ExecutorWithExternalLauncher",),
    "vllm.model_executor.model_loader.reload": ("initialize_layerwise_reload", "finalize_layerwise_reload"),
    "vllm.model_executor.model_loader.reload.layerwise": ("get_layerwise_info", "make_online_process_loader"),
}
"""The attributes that we use beyond vLLM's public interface."""
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # models are local folders
}
# vLLM's CPU platform sets these for worker processes that we do not have. The verifier's processes would inherit them.
RESTORED = ("LOCAL_WORLD_SIZE", "LD_PRELOAD", "NUMEXPR_MAX_THREADS")


def name_ranges() -> None:
    """Make vLLM name the parts of its steps in a trace. Call before sampling."""
    os.environ.setdefault("VLLM_CUSTOM_SCOPES_FOR_PROFILING", "1")


def import_vllm() -> ModuleType:
    """Import vLLM (takes seconds) with the environment of an engine inside this process.

    Keeps variables that the user set. Raises ValueError if one of them makes such an engine impossible.
    """
    multiprocessing = os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if multiprocessing != "0":
        raise ValueError(
            f"VLLM_ENABLE_V1_MULTIPROCESSING={multiprocessing}: the engine would run in a process of its own, out of "
            "reach of the trainer's weights; unset the variable or set it to 0."
        )
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # warns that Triton is missing, even on the CPU
    with gc_control.imports():
        import vllm

        check_interface(vllm.__version__)
        vllm.LLM  # noqa: B018 (vllm imports it lazily)
    _keep_process_groups()
    return vllm


def check_interface(version: str) -> None:
    """Warn about an untested version of vLLM. Raises RuntimeError if something that we use is missing."""
    missing = []
    for name, attributes in INTERFACE.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            missing.append(name)
        else:
            missing += [f"{name}.{attribute}" for attribute in attributes if not hasattr(module, attribute)]
    if missing:
        raise RuntimeError(
            f"vLLM {version} has no {', no '.join(missing)}, which rollouts and resharding need; install vllm "
            f"{TESTED_VERSION}."
        )
    if not version.startswith(f"{TESTED_VERSION}."):
        warnings.warn(
            f"vLLM {version}: tested with {TESTED_VERSION}. The proof after every resharding (reshard.verify) shows "
            "whether the weights arrive; watch rollout/logprob_gap_mean for the rest.",
            stacklevel=2,
        )


def _keep_process_groups() -> None:
    """Make vLLM destroy only its own process groups.

    An engine that is shut down, or only garbage-collected, destroys the default group, which is the trainer's. If the
    trainer destroyed all groups first, vLLM fails on its own ones ("Invalid process group specified", at exit).
    """
    import vllm.distributed.parallel_state as parallel_state

    def destroy_world() -> None:  # the original then calls torch.distributed.destroy_process_group()
        if parallel_state._WORLD is not None and dist.is_initialized():
            parallel_state._WORLD.destroy()
        parallel_state._WORLD = None
        parallel_state._NODE_COUNT = None

    def destroy_model_parallel() -> None:
        if dist.is_initialized():
            original()

    if not hasattr(parallel_state, "_keeps_the_trainers_groups"):
        original = parallel_state.destroy_model_parallel
        parallel_state.destroy_model_parallel = destroy_model_parallel
        parallel_state.destroy_distributed_environment = destroy_world
        parallel_state._keeps_the_trainers_groups = True


def on_cpu() -> bool:
    """Return whether vLLM runs on the CPU; import it first."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def set_launcher_variables() -> None:
    """Set RANK and LOCAL_RANK: vLLM's `external_launcher` reads them even if the process group already exists.

    Raises RuntimeError if LOCAL_RANK is not set and cannot be derived.
    """
    os.environ.setdefault("RANK", str(dist.get_rank()))
    if dist.get_world_size() == 1:
        os.environ.setdefault("LOCAL_RANK", "0")
    if "LOCAL_RANK" not in os.environ:
        raise RuntimeError(
            "LOCAL_RANK is not set: vLLM takes this process' device from it; start with torchrun, or export it "
            "(under srun: LOCAL_RANK=$SLURM_LOCALID)."
        )


@contextmanager
def construction() -> Iterator[None]:
    """Protect the process while an engine is built. Collective over all processes."""
    with warnings.catch_warnings(), random_state_kept(), _environment_kept(), _own_shared_memory():
        warnings.simplefilter("ignore", FutureWarning)  # vLLM's search for Triton kernels touches deprecated names
        yield


@contextmanager
def plain_weights() -> Iterator[None]:
    """Make a CPU engine that is built inside use its parameters directly, without copies packed for oneDNN or AMX."""
    if not on_cpu():
        yield
        return
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    with patched(_custom_ops, _supports_onednn=False), patched(utils, check_cpu_sgl_kernel=lambda *_: False):
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's generators afterwards: they belong to the trainer.

    vLLM seeds all of them when an engine is built, and its CPU sampler draws from torch's even for seeded requests.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo vLLM's changes to the variables in RESTORED."""
    before = {name: os.environ.get(name) for name in RESTORED}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _own_shared_memory() -> Iterator[None]:
    """Give a CPU engine built inside a shared-memory name that no other engine on this machine has.

    Its tensor-parallel ranks communicate through /dev/shm files. vLLM names them after the end of the init method,
    which `external_launcher` always sets to "env://". So a second job, a second engine or leftover files of a killed
    job fail with "create shm in SHMManager failed. errno: 17".
    """
    if not on_cpu():
        yield
        return
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    original = ExecutorWithExternalLauncher._distributed_args
    token = [secrets.token_hex(8)]
    dist.broadcast_object_list(token, src=0)

    def with_token(executor: Any) -> tuple[str, int, int]:
        init_method, rank, local_rank = original(executor)
        return init_method + token[0], rank, local_rank  # only a name: the process group already exists

    with patched(ExecutorWithExternalLauncher, _distributed_args=with_token):
        yield


def end_last_request_where(llm_engine: Any, completed: Callable[[Sequence[int]], str | None]) -> None:
    """End the last added request as soon as `completed`, given its sampled tokens, returns a stop string.

    vLLM's own stop strings are not used. It looks for them only in what this request samples, not across the boundary
    to the partial rollout before it. For that it also decodes every token, and every log-probability's token. vLLM's
    output processor asks a request's detokenizer after every step (IncrementalDetokenizer, which only collects tokens
    if nothing is decoded). If it returns a stop string, the request ends with the tokens so far.
    """
    state = next(reversed(llm_engine.output_processor.request_states.values()))
    token_ids: list[int] = state.detokenizer.token_ids

    def update(new_token_ids: list[int], stop_terminated: bool) -> str | None:
        token_ids.extend(new_token_ids)
        return None if stop_terminated else completed(token_ids)

    state.detokenizer.update = update


def repack_tied_weights(model: torch.nn.Module) -> None:
    """Pack again a weight that two layers share: the output layer with tied embeddings.

    On the CPU every linear layer keeps a oneDNN copy of its weight. `reload_weights` packs only the layer whose name
    was in the stream (model_loader/reload documents this limitation). So a tied output layer would silently keep the
    old weights.
    """
    seen: set[int] = set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.numel() == 0:
            continue
        if id(weight) in seen:
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator, union-attr]
        seen.add(id(weight))
