"""Run one vLLM engine per `rollout.tensor` processes of the training job, inside those processes.

P prompts give P completions; L is the length of one completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rapo.config import RolloutConfig
from megatron_rapo.data import find_stops, load_tokenizer
from megatron_rapo.models import read_shape
from megatron_rapo.models.parameter_map import engine_shards
from megatron_rapo.rollout import vllm_patches
from megatron_rapo.rollout.endings import Endings
from megatron_rapo.rollout.generation import Generation
from megatron_rapo.rollout.requests import Sampling, check_requests
from megatron_rapo.rollout.weights import Weights, open_weights
from megatron_rapo.types import NOTHING, Completion


class Engine:
    """A vLLM engine over `rollout.tensor` consecutive processes of the default torch.distributed group.

    There are (world size / `rollout.tensor`) engines, replicas of each other. Construction and `close` are collective
    over all processes; `generate`, `generating`, `updating` and `sleep` over one engine's processes, which must pass
    the same arguments. Until the first update the weights are those of `model_path`.

    An engine that `sleeps` (GPU) can release its weights and its key-value cache until the next update.

    The default process group must exist (a group of one process is enough) and stays the caller's: close the engine
    before you destroy it. vLLM makes `torch.set_num_threads` a no-op on the CPU; set OMP_NUM_THREADS instead.

    Completions stop at the end-of-sequence tokens of `model_path`, at `rollout.stop_token_ids` and at `rollout.stop`
    (None: no strings; the engine does not know the template).

    Raises RuntimeError without a process group, ValueError if `rollout.tensor` does not divide the world size, and
    DataError for a stop token that the model does not have.
    """

    def __init__(
        self,
        model_path: Path,
        rollout: RolloutConfig,
        *,
        dtype: str,  # "float32" or "bfloat16"
        max_sequence_tokens: int,  # prompt and completion
        seed: int,
        sleeps: bool = False,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "Engine: there is no torch.distributed process group; call torch.distributed.init_process_group first "
                "(for a single process too)."
            )
        if dist.get_world_size() % rollout.tensor:
            raise ValueError(
                f"rollout.tensor={rollout.tensor}: does not divide the {dist.get_world_size()} processes; "
                "set rollout.tensor to a divisor of it."
            )
        self.num_replicas = dist.get_world_size() // rollout.tensor
        self.replica = dist.get_rank() // rollout.tensor
        self.replica_size = rollout.tensor  # processes of one engine
        self.rank_in_replica = dist.get_rank() % rollout.tensor
        self._max_sequence_tokens = max_sequence_tokens
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._sleeps, self._asleep = sleeps, False
        self.weight_version: int | None = None  # of the loaded weights; None while they are those of the model folder
        self._broken: str | None = None

        shape = read_shape(model_path)
        self._tokenizer = load_tokenizer(model_path)  # vLLM's differs if the folder has only a tokenizer.model
        self.stops = find_stops(
            model_path,
            self._tokenizer,
            vocab_size=shape.vocab_size,
            strings=rollout.stop or (),
            token_ids=rollout.stop_token_ids,
        )
        self._endings = Endings(self.stops, partial(self.decode, special_tokens=False))
        vllm = vllm_patches.import_vllm()
        vllm_patches.set_launcher_variables()
        with vllm_patches.construction(), nullcontext() if rollout.packed else vllm_patches.plain_weights():
            self._llm: Any = vllm.LLM(
                model=str(model_path),
                trust_remote_code=False,
                dtype=dtype,
                seed=seed,
                max_model_len=max_sequence_tokens,
                enable_sleep_mode=sleeps,
                **_engine_options(rollout, max_sequence_tokens),
            )
        self._sampling_params = vllm.SamplingParams
        self._output_kinds, self._tokens_input = vllm.sampling_params.RequestOutputKind, vllm.inputs.tokens_input
        shards = engine_shards(shape, tensor=rollout.tensor, rank=self.rank_in_replica)
        [model] = self._llm.apply_model(lambda model: model)
        self._weights = open_weights(
            model, self._llm.llm_engine.vllm_config, {name: shard.shape for name, shard in shards.items()}, self._dtype
        )

    def decode(self, token_ids: Sequence[int], *, special_tokens: bool = True) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=not special_tokens))

    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """Return one completion for each of the P prompts, in their order. Runs `generating` to the end."""
        found: dict[int, Completion] = {}
        with self.generating(prompts, sampling, seeds) as generation:
            while generation.unfinished:
                found |= generation.step()
        return [found[place] for place in range(len(prompts))]

    @contextmanager
    def generating(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        begun: Sequence[Completion] = (),
        stoppable: bool = False,
    ) -> Iterator[Generation]:
        """Start a completion for each of the P prompts (token ids). `seeds` [P] are in [0, 2**32).

        Completions continue from `begun`, which has an entry for every prompt or is empty. Those that are unfinished at
        the end of the context are aborted. With `stoppable` vLLM reports partial output at every step, so that
        `Generation.stop` can return it.

        A prompt with a seed gives the same tokens in any batch and on any replica. The log-probabilities are those of
        the sampled distribution, with temperature and top_p applied (at temperature 0, where there is none, those of
        temperature 1).

        Raises ValueError for a prompt without room for a completion, a finished completion or a seed out of range, and
        RuntimeError after a failed call.
        """
        begun = begun or [NOTHING] * len(prompts)
        check_requests(prompts, sampling, seeds, begun, max_sequence_tokens=self._max_sequence_tokens)
        self._check_usable()
        if self._asleep:
            raise RuntimeError("Engine: asleep, without weights; update it before it generates.")
        llm_engine = self._llm.llm_engine
        generation = Generation(llm_engine, begun, weight_version=self.weight_version, endings=self._endings)
        try:
            self._reset_prefix_cache()  # results must not depend on what was sampled before
            with vllm_patches.random_state_kept():
                for place, (prompt, before, seed) in enumerate(zip(prompts, begun, seeds, strict=True)):
                    earlier = before.token_ids.tolist()
                    request = self._request(sampling, seed, num_begun=len(earlier), stoppable=stoppable)
                    llm_engine.add_request(str(place), self._tokens_input([*prompt, *earlier]), request)
                    if self._endings.has_strings:
                        vllm_patches.end_last_request_where(llm_engine, partial(self._endings.completed, earlier))
                yield generation
                if generation.unfinished:
                    generation.stop()
        except BaseException as error:  # requests may be left in the scheduler and would appear in the next call
            self._broken = f"generate failed ({error!r})"
            raise

    @contextmanager
    def updating(self, version: int) -> Iterator[Weights]:
        """Open this rank's parameters for writing. All must be written; afterwards they have this `version`.

        Raises RuntimeError after a failed update. That update leaves the engine unusable.
        """
        self._check_usable()
        try:
            self._wake("weights")
            with self._weights.opened() as weights:
                yield weights
            self._wake("kv_cache")
            self._asleep = False
            # Without this, cached prompts would be continued from keys and values of the old weights.
            self._reset_prefix_cache()
        except BaseException as error:
            self._broken = f"loading weight version {version} failed ({error})"
            raise
        self.weight_version = version

    def sleep(self) -> None:
        """Release the weights and the key-value cache until the next update. Does nothing if the engine never sleeps.

        Raises RuntimeError after a failed call.
        """
        self._check_usable()
        if not self._sleeps or self._asleep:
            return
        self._asleep = True  # if the next call fails, the weights cannot be trusted
        self._llm.sleep(level=2)  # level 2 keeps no copy: an update writes every weight

    def _wake(self, tag: str) -> None:
        """Allocate again the memory of one kind that a sleeping engine released."""
        if self._asleep:
            torch.cuda.empty_cache()  # vLLM allocates from the device itself, not from torch's reserve
            self._llm.wake_up(tags=[tag])

    def _reset_prefix_cache(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")

    def close(self) -> None:
        """Release the weights, the key-value cache and vLLM's process groups. A second call does nothing."""
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        llm.llm_engine.engine_core.shutdown()

    def _check_usable(self) -> None:
        if self._llm is None:
            raise RuntimeError("Engine: closed; build a new one.")
        if self._broken:
            raise RuntimeError(f"Engine: unusable since {self._broken}; build a new one.")

    def _request(self, sampling: Sampling, seed: int, *, num_begun: int, stoppable: bool) -> Any:
        return self._sampling_params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_completion_tokens - num_begun,
            seed=int(seed),
            stop_token_ids=list(self.stops.token_ids),
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,  # one list instead of one dict a token
            detokenize=False,  # the text is decoded once, at the end, instead of with every token
            output_kind=self._output_kinds.CUMULATIVE if stoppable else self._output_kinds.FINAL_ONLY,
        )


def _engine_options(rollout: RolloutConfig, max_sequence_tokens: int) -> dict[str, Any]:
    """Return vLLM's arguments, except the model's."""
    options: dict[str, Any] = {
        "tensor_parallel_size": rollout.tensor,
        "distributed_executor_backend": "external_launcher",  # this process is the worker, whatever its rank
        "enforce_eager": not rollout.compile,
        "max_num_seqs": rollout.max_concurrent,
        "kv_cache_memory_bytes": rollout.kv_cache_mib << 20,
        # Not used with kv_cache_memory_bytes. But vLLM refuses to start on a GPU with less than this share free, and
        # the trainer is already there.
        "gpu_memory_utilization": 0.01,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # after temperature and top_p
        "generation_config": "vllm",  # not the model folder's sampling defaults
        # Mistral's folders hold the weights twice. By default vLLM takes the files that the trainer does not read:
        # params.json, consolidated.safetensors and a tokenizer of its own.
        **dict.fromkeys(("config_format", "load_format", "tokenizer_mode"), "hf"),
        "use_tqdm_on_load": False,
    }
    if rollout.fp8:
        # One scale for each row, also for a row that tensor parallelism splits. Runs on a CPU too.
        options["quantization"] = "fp8_per_channel"
    if rollout.tensor > 1:
        # Every rank runs its own scheduler. With async scheduling its decisions could depend on timing and differ.
        options["async_scheduling"] = False
    if vllm_patches.on_cpu():
        # For a prompt prefilled in parts, vLLM rewinds the request's generator: "CPU Generator does not use offset".
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(8192, max_sequence_tokens, rollout.max_concurrent)
    return options
