"""Requests that one vLLM engine works on: what has finished by each of its steps, and what there is where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megatron_rapo.rollout.endings import Endings
from megatron_rapo.types import Completion


class Work(NamedTuple):
    """What an engine did for a generation."""

    steps: int = 0  # of vLLM: each gives a token to every completion that is being decoded
    prompt_tokens: int = 0  # of the requests that there was something of, with what they went on from
    cached_tokens: int = 0  # those of them whose keys and values had been computed for another request

    def __add__(self, other: Any) -> Work:
        return Work(*map(sum, zip(self, other, strict=True)))


class Generation:
    """Completions under way, by their places in the call of `Engine.generating` that gave this.

    What happens depends on prompts, seeds and the number of steps alone, never on time: the processes of an engine,
    each of which runs its own scheduler, go on alike.

    Attributes:
        work: what has been done so far.
    """

    def __init__(
        self,
        llm_engine: Any,
        begun: Sequence[Completion],
        *,
        weight_version: int | None,
        endings: Endings,
    ) -> None:
        self._llm_engine, self._weight_version, self._endings = llm_engine, weight_version, endings
        self._under_way = dict(enumerate(begun))
        self._so_far: dict[int, Any] = {}  # vLLM's outputs for what is under way, where it gives them before the end
        self.work = Work()

    @property
    def unfinished(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def step(self) -> dict[int, Completion]:
        """One more token for each that is being decoded. Returns those that it has finished, in vLLM's order."""
        self.work += Work(steps=1)
        finished = {}
        for output in self._llm_engine.step():
            place = int(output.request_id)
            if output.finished:
                self._so_far.pop(place, None)
                finished[place] = self._completion(place, output)
            else:
                self._so_far[place] = output
        return finished

    def stop(self) -> dict[int, Completion]:
        """Abort what is under way. Returns what there is of it: of a `stoppable` call, all that was decoded."""
        self._llm_engine.abort_request([str(place) for place in self._under_way])
        while self._llm_engine.engine_core.engine_core.batch_queue:  # scheduled ahead of the results that are known
            self._llm_engine.step()
        return {
            place: self._completion(place, self._so_far[place]) if place in self._so_far else self._under_way.pop(place)
            for place in list(self._under_way)
        }

    def _completion(self, place: int, output: Any) -> Completion:
        self.work += Work(prompt_tokens=len(output.prompt_token_ids), cached_tokens=output.num_cached_tokens)
        begun, sampled = self._under_way.pop(place), output.outputs[0]
        new, logprobs = sampled.token_ids, sampled.logprobs.logprobs
        assert len(logprobs) == len(new), f"{len(logprobs)} log-probabilities of {len(new)} tokens"
        assert sampled.finish_reason in ("stop", "length", None), f"vLLM ended a request with {sampled.finish_reason!r}"
        whole = begun.extended(new, logprobs, self._weight_version, text="", truncated=False, finished=False)
        ending = self._endings.find(whole.token_ids.tolist())
        finished = output.finished or ending.stopped
        return whole.shortened(
            ending.num_tokens,
            text=ending.text if finished else "",
            truncated=sampled.finish_reason == "length" and not ending.stopped,
            finished=finished,
        )
