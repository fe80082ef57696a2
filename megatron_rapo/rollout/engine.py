"""One vLLM engine per `rollout.tensor` processes of the training job, inside those processes.

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

    World size / `rollout.tensor` engines are replicas of each other. Construction and `close` are collective over all
    processes; `generate`, `generating`, `updating` and `sleep` over one engine's processes, which must pass the same
    arguments. Until the first update the weights are those of `model_path`.

    An engine that `sleeps` (GPU) can release its weights and its key-value cache until the next update.

    The default process group must exist (a group of one process will do), and stays the caller's: close the engine
    before destroying it. vLLM makes `torch.set_num_threads` a no-op on the CPU; set OMP_NUM_THREADS instead.

    Completions stop at the end-of-sequence tokens of `model_path`, at `rollout.stop_token_ids` and at `rollout.stop`
    (nothing where that is None: templates are not known here).

    Raises RuntimeError without a process group, ValueError for a size that does not divide the world's, DataError for a
    stop token that the model does not have.
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
        self._version: int | None = None
        self._broken: str | None = None

        shape = read_shape(model_path)
        self._tokenizer = load_tokenizer(model_path)  # vLLM's is another where the folder has a bare tokenizer.model
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
            model,
            self._llm.llm_engine.vllm_config,
            {name: shard.shape for name, shard in shards.items()},
            self._dtype,
        )

    @property
    def weight_version(self) -> int | None:
        """The version last loaded; None while the weights are those of the model folder."""
        return self._version

    def decode(self, token_ids: Sequence[int], *, special_tokens: bool = True) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=not special_tokens))

    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion for each of the P prompts, in their order: `generating` to the end."""
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
        """Within it, a completion for each of the P prompts (token ids) is under way; `seeds` [P] are in [0, 2**32).

        Each goes on from what is `begun` of it, given for all prompts or for none. What is not finished at the end is
        given up; of a `stoppable` generation vLLM tells at every step what there is of it, and `stop` does.

        A prompt with a seed gives the same tokens whatever else is in the batch and on whichever replica. The
        log-probabilities are those of the distribution sampled from: temperature and top_p included (at temperature 0,
        where there is none, those of temperature 1).

        Raises ValueError for a prompt that leaves no room for a completion, one that is finished or a seed out of
        range, RuntimeError after a failed call.
        """
        begun = begun or [NOTHING] * len(prompts)
        check_requests(prompts, sampling, seeds, begun, max_sequence_tokens=self._max_sequence_tokens)
        self._check_usable()
        if self._asleep:
            raise RuntimeError("Engine: asleep, without weights; update it before it generates.")
        llm_engine = self._llm.llm_engine
        generation = Generation(llm_engine, begun, weight_version=self._version, endings=self._endings)
        try:
            self._reset_prefix_cache()  # what a call gives must not depend on what was sampled before it
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
        except BaseException as error:  # requests may be left in the scheduler, and would come out of the next call
            self._broken = f"generate failed ({error!r})"
            raise

    @contextmanager
    def updating(self, version: int) -> Iterator[Weights]:
        """The parameters of this rank, all of which must be written inside; afterwards they are of `version`.

        Raises RuntimeError after a failed update, which leaves the engine unusable.
        """
        self._check_usable()
        try:
            self._wake("weights")
            with self._weights.opened() as weights:
                yield weights
            self._wake("kv_cache")
            self._asleep = False
            # Without this, prompts whose blocks are cached are continued from keys and values of the old weights.
            self._reset_prefix_cache()
        except BaseException as error:
            self._broken = f"loading weight version {version} failed ({error})"
            raise
        self._version = version

    def sleep(self) -> None:
        """Release the weights and the key-value cache until the next update; nothing in an engine that never sleeps.

        Raises RuntimeError after a failed call.
        """
        self._check_usable()
        if not self._sleeps or self._asleep:
            return
        self._asleep = True  # whatever happens, the weights cannot be relied on
        self._llm.sleep(level=2)  # neither is kept: an update writes every weight

    def _wake(self, tag: str) -> None:
        """Have memory again for what an engine that is asleep has released of one kind."""
        if self._asleep:
            torch.cuda.empty_cache()  # vLLM takes it from the device itself, not from what torch keeps in reserve
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
            logprobs=0,  # of the sampled token, and no others
            flat_logprobs=True,  # one list instead of one dict a token
            detokenize=False,  # the text is decoded once, at the end, instead of with every token
            output_kind=self._output_kinds.CUMULATIVE if stoppable else self._output_kinds.FINAL_ONLY,
        )


def _engine_options(rollout: RolloutConfig, max_sequence_tokens: int) -> dict[str, Any]:
    """vLLM's arguments apart from the model's."""
    options: dict[str, Any] = {
        "tensor_parallel_size": rollout.tensor,
        "distributed_executor_backend": "external_launcher",  # this process is the worker, whatever its rank
        "enforce_eager": not rollout.compile,
        "max_num_seqs": rollout.max_concurrent,
        "kv_cache_memory_bytes": rollout.kv_cache_mib << 20,
        # Ruled out by kv_cache_memory_bytes, but at start vLLM refuses a GPU with less than this share free; the
        # trainer is there first.
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
        # A scale for each row, which tensor parallelism leaves whole where it splits rows; and it runs on a CPU too.
        options["quantization"] = "fp8_per_channel"
    if rollout.tensor > 1:
        # Every rank runs its own scheduler. Overlapped with the model, its decisions could depend on timing and differ.
        options["async_scheduling"] = False
    if vllm_patches.on_cpu():
        # Of a prompt prefilled in parts, vLLM rewinds the request's generator: "CPU Generator does not use offset".
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(8192, max_sequence_tokens, rollout.max_concurrent)
    return options
