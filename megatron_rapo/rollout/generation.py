"""Run the requests of one vLLM engine: collect finished completions after each step, and partial ones at a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megatron_rapo.rollout.endings import Endings
from megatron_rapo.types import Completion


class Work(NamedTuple):
    """The work of an engine for a generation."""

    steps: int = 0  # of vLLM; each adds a token to every completion that is being decoded
    prompt_tokens: int = 0  # of requests with output; includes the partial rollouts that they continue
    cached_tokens: int = 0  # prompt tokens whose keys and values were already computed for another request

    def __add__(self, other: Any) -> Work:
        return Work(*map(sum, zip(self, other, strict=True)))


class Generation:
    """Running completions, by their places in the call of `Engine.generating` that created this. `work` counts.

    Results depend only on prompts, seeds and the number of steps, never on time. So the processes of an engine, each
    with its own scheduler, stay in step.
    """

    def __init__(
        self, llm_engine: Any, begun: Sequence[Completion], *, weight_version: int | None, endings: Endings
    ) -> None:
        self._llm_engine, self._weight_version, self._endings = llm_engine, weight_version, endings
        self._under_way = dict(enumerate(begun))
        self._so_far: dict[int, Any] = {}  # vLLM's partial outputs, if it gives them before the end
        self.work = Work()

    @property
    def unfinished(self) -> int:
        """Return the number of running completions."""
        return len(self._under_way)

    def step(self) -> dict[int, Completion]:
        """Decode one token of each running completion. Returns the completions that finished, in vLLM's order."""
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
        """Abort running completions and return them. Those of a `stoppable` call have all tokens decoded so far."""
        self._llm_engine.abort_request([str(place) for place in self._under_way])
        while self._llm_engine.engine_core.engine_core.batch_queue:  # steps that are scheduled but not yet processed
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
