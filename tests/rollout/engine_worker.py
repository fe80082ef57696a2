"""`engine_worker.py FOLDER TENSOR` on 2 processes: run an engine. test_engine.py checks the results.

FOLDER holds tiny models: tied and untied, and tied-other and untied-other with other weights.

Every check is a function of the engine and returns a value for JSON. Rank 0 writes the results of all ranks.
"""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_rapo.config import RolloutConfig
from megatron_rapo.data import Stops
from megatron_rapo.models import WeightReader, read_shape
from megatron_rapo.models.parameter_map import engine_shards, fill
from megatron_rapo.rollout import Engine, Sampling
from megatron_rapo.rollout.endings import Endings
from megatron_rapo.types import NOTHING, Completion
from tests.launch import write_result
from tests.tiny_models import EOS, load_reference

MAX_TOKENS = 320
LONG = tuple(3 + (7 * i) % 95 for i in range(200))  # more than one block of 128 tokens, so that the first is cached
PROMPTS = [(20, 14, 20, 32), LONG, LONG[:130], tuple(reversed(LONG[:60])), (5,)]
SEEDS = [11, 12, 13, 14, 15]


def completions(engine: Engine, temperature: float = 1.0, top_p: float = 1.0, tokens: int = 24) -> list[Completion]:
    sampling = Sampling(temperature=temperature, top_p=top_p, max_completion_tokens=tokens)
    return engine.generate(PROMPTS, sampling, SEEDS)


@torch.no_grad()
def gap(
    model: torch.nn.Module, answers: list[Completion], temperature: float = 1.0, top_p: float = 1.0
) -> tuple[float, float]:
    """Return the largest |engine - transformers in float64| log-probability, and their standard deviation."""
    model = copy.deepcopy(model).double()
    worst, seen = 0.0, []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids.tolist()]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        if top_p < 1:
            ordered, order = logits.softmax(-1).sort(descending=True)
            cut = (ordered.cumsum(-1) - ordered) >= top_p
            logits = logits.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), float("-inf"))
        reference = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        worst = max(worst, (reference - torch.from_numpy(answer.logprobs)).abs().max().item())
        seen += reference.tolist()
    return worst, float(np.std(seen))


def logprobs_match_transformers(engine: Engine, folder: Path) -> dict[str, Any]:
    model = load_reference(folder)
    settings = {"T=1": (1.0, 1.0), "T=0.7": (0.7, 1.0), "T=1.3 top_p=0.8": (1.3, 0.8)}
    found: dict[str, Any] = {
        name: gap(model, completions(engine, *setting), *setting) for name, setting in settings.items()
    }
    found["T=0.7 read as T=1"] = gap(model, completions(engine, 0.7), 1.0)
    greedy = completions(engine, 0.0)
    found["greedy"] = gap(model, greedy)
    ids = torch.tensor([[*PROMPTS[0], *greedy[0].token_ids.tolist()]])
    with torch.no_grad():
        best = model(ids).logits[0, len(PROMPTS[0]) - 1 : -1].argmax(-1)
    found["greedy is the most likely"] = best.tolist() == greedy[0].token_ids.tolist()
    return found


def seeds_decide(engine: Engine, _: Path) -> dict[str, Any]:
    """Run 24 requests that need more blocks than the cache has (so vLLM preempts some), and each alone."""
    prompts = [tuple(3 + (5 * i + j) % 95 for j in range(120)) for i in range(24)]
    seeds = [1000 + i for i in range(24)]
    sampling = Sampling(temperature=1.0, max_completion_tokens=150)
    together = [c.token_ids.tolist() for c in engine.generate(prompts, sampling, seeds)]
    alone = [
        engine.generate([p], sampling, [s])[0].token_ids.tolist() for p, s in zip(prompts[:4], seeds[:4], strict=True)
    ]
    short = Sampling(temperature=1.0, max_completion_tokens=12)
    others = [c.token_ids.tolist() for c in engine.generate(prompts, short, [s + 1 for s in seeds])]
    twice = engine.generate([LONG] * 3, sampling, [7, 7, 8])
    return {
        "tokens": together,
        "alone": alone,
        "unchanged by other seeds": sum(a[:12] == b for a, b in zip(together, others, strict=True)),
        "same seed": twice[0].token_ids.tolist() == twice[1].token_ids.tolist(),
        "other seed": twice[0].token_ids.tolist() == twice[2].token_ids.tolist(),
    }


def cached_prompt_tokens(engine: Engine, _: Path) -> dict[str, list[int]]:
    """Return steps, prompt tokens and cached prompt tokens of four calls.

    The second has the prompt of the first. The third does not reset the cache before it. The last begins four requests.
    """
    reset, found = engine._llm.reset_prefix_cache, {}
    calls = {"first": (reset, 1), "second": (reset, 1), "without a reset": (lambda: True, 1), "a group": (reset, 4)}
    for name, (resets, n) in calls.items():
        engine._llm.reset_prefix_cache = resets
        with engine.generating([LONG] * n, Sampling(temperature=1.0, max_completion_tokens=1), range(n)) as generation:
            while generation.unfinished:
                generation.step()
        found[name] = list(generation.work)
    engine._llm.reset_prefix_cache = reset
    return found


def stopped_and_gone_on(engine: Engine, folder: Path) -> dict[str, Any]:
    """Stop 15 completions when five are finished, and continue the others with other weights.

    Some of them had to wait for room in the cache.
    """
    sampling = Sampling(temperature=1.0, max_completion_tokens=60)
    prompts, seeds = PROMPTS * 3, [100 + i for i in range(15)]
    whole, finished = engine.generate(prompts, sampling, seeds), {}
    with engine.generating(prompts, sampling, seeds, stoppable=True) as generation:
        while len(finished) < 5:
            finished |= generation.step()
        rest = generation.stop()
    found: dict[str, Any] = {
        "order": list(finished),
        "finished are the same": all(same(completion, whole[i]) for i, completion in finished.items()),
        "others are their beginnings": all(
            c.token_ids.tolist() == whole[i].token_ids[: len(c.token_ids)].tolist()
            and c.logprobs.tolist() == whole[i].logprobs[: len(c.token_ids)].tolist()
            for i, c in rest.items()
        ),
        "tokens": [len(c.token_ids) for c in rest.values()],
        "said of them": sorted({(c.text, c.truncated, c.finished) for c in rest.values()}),
        "nothing is left": all(map(same, engine.generate(prompts, sampling, seeds), whole)),
    }
    version = engine.weight_version
    other = folder.with_name(f"{folder.name}-other")
    load(engine, other, version=20)
    asked = [prompts[i] for i in rest]
    with engine.generating(asked, sampling, range(len(rest)), begun=list(rest.values())) as generation:
        gone_on: dict[int, Completion] = {}
        while generation.unfinished:
            gone_on |= generation.step()
    ended = [gone_on[place] for place in range(len(rest))]
    stale = [c.num_stale(20) for c in ended]
    kept = [
        c.token_ids[:n].tolist() == b.token_ids.tolist() for c, n, b in zip(ended, stale, rest.values(), strict=True)
    ]
    found["spans"] = [[[span.weight_version == version, *span] for span in c.spans] for c in ended]
    found["what was begun is kept"] = all(kept) and stale == found["tokens"]
    found["lengths"] = [[len(c.token_ids), c.truncated, c.finished] for c in ended]
    of_old, of_new = (token_logprobs(load_reference(each), asked, ended) for each in (folder, other))
    found["gap"] = max(
        float(np.abs(c.logprobs - np.concatenate([old[:n], new[n:]])).max())
        for c, n, old, new in zip(ended, stale, of_old, of_new, strict=True)
    )
    found["gap of the first tokens to the new weights"] = max(
        float(np.abs(c.logprobs[:n] - new[:n]).max()) for c, n, new in zip(ended, stale, of_new, strict=True) if n
    )
    load(engine, folder, version=21)
    return found


def same(a: Completion, b: Completion) -> bool:
    return (a.token_ids.tolist(), a.logprobs.tolist(), a.text, a.truncated, a.spans, a.finished) == (
        *(b.token_ids.tolist(), b.logprobs.tolist(), b.text, b.truncated, b.spans, b.finished),
    )


@torch.no_grad()
def token_logprobs(
    model: torch.nn.Module, prompts: list[tuple[int, ...]], answers: list[Completion]
) -> list[np.ndarray]:
    """Return the log-probability of each token of each answer, by transformers in float64."""
    model, found = model.double(), []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids.tolist()]])
        logp = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logp.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy())
    return found


def sampled_frequencies(engine: Engine, folder: Path) -> dict[str, float]:
    """Compare the first token of a prompt under 2048 consecutive seeds with its distribution (chi-squared)."""
    with torch.no_grad():
        probability = load_reference(folder)(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).double().numpy()
    number = 2048
    answers = engine.generate(
        [PROMPTS[0]] * number, Sampling(temperature=1.0, max_completion_tokens=1), list(range(number))
    )
    counts = np.bincount([c.token_ids[0] for c in answers], minlength=len(probability))
    often = probability * number >= 5
    expected = np.append(probability[often], probability[~often].sum()) * number
    observed = np.append(counts[often], counts[~often].sum())
    return {"chi2": float(((observed - expected) ** 2 / expected).sum()), "cells": float(len(expected))}


def endings(engine: Engine, _: Path) -> dict[str, Any]:
    """Return how completions end, and their text."""
    sampling = Sampling(temperature=1.0, max_completion_tokens=60)
    answers = engine.generate([PROMPTS[0]] * 64, sampling, list(range(64)))
    decode = ["".join("\n" if i == 98 else chr(i + 29) for i in c.token_ids.tolist() if 3 <= i <= 98) for c in answers]
    full = engine.generate([LONG + LONG[: MAX_TOKENS - 201]], sampling, [0])[0]
    return {
        "ended": sum(not c.truncated for c in answers),
        "truncated": sum(c.truncated for c in answers),
        "ended by eos": all(c.truncated != (c.token_ids[-1] == EOS) for c in answers),
        "eos only at the end": all(EOS not in c.token_ids[:-1] for c in answers),
        "truncated at the limit": all(len(c.token_ids) == 60 for c in answers if c.truncated),
        "texts": [c.text for c in answers] == decode,
        "dtypes": sorted({f"{c.token_ids.dtype} {c.logprobs.dtype}" for c in answers}),
        "a full sequence": [len(full.token_ids), full.truncated or int(full.token_ids[0]) == EOS],
    }


def stops(engine: Engine, folder: Path) -> dict[str, Any]:
    """Compare completions that stop at a string of two characters or at a token with the same ones without stops.

    Also continue partial completions whose stop is across the boundary, before it, or spelled.
    """
    prompts, seeds, sampling = [PROMPTS[0]] * 64, list(range(64)), Sampling(temperature=1.0, max_completion_tokens=60)
    plain, pair, token = engine.generate(prompts, sampling, seeds), "h'", 40
    with stopping_at(engine, (pair, "never"), token):
        answers = engine.generate(prompts, sampling, seeds)
    # A character is a token: what a string of two of them takes is known without decoding.
    shown = ["".join(chr(i + 29) if 3 <= i < 98 else "\n" for i in c.token_ids.tolist()) for c in plain]
    marks = {pair: 2, chr(token + 29): 1}
    ends = [[text.find(mark) + length for mark, length in marks.items() if mark in text] for text in shown]
    found: dict[str, Any] = {
        "stopped": [sum(map(bool, ends)), sum(pair in text for text in shown)],
        "lengths": [len(c.token_ids) for c in answers],
        "expected lengths": [min([*of_one, len(c.token_ids)]) for of_one, c in zip(ends, plain, strict=True)],
        "tokens are the same": all(
            a.token_ids.tolist() == c.token_ids[: len(a.token_ids)].tolist()
            and len(a.logprobs) == len(a.token_ids)
            and sum(span.num_tokens for span in a.spans) == len(a.token_ids)
            for a, c in zip(answers, plain, strict=True)
        ),
        "texts": [c.text for c in answers],
        "expected texts": [c.text.split(pair)[0].split(chr(token + 29))[0] for c in plain],
        "truncated": [c.truncated for c in answers],
    }
    reference = token_logprobs(load_reference(folder), prompts, answers)
    found["gap"] = max(float(np.abs(a.logprobs - r).max()) for a, r in zip(answers, reference, strict=True))

    few = Sampling(temperature=1.0, max_completion_tokens=30)
    with engine.generating(prompts[:8], few, seeds[:8], stoppable=True) as generation:
        for _ in range(9):
            generation.step()
        begun = list(generation.stop().values())
    found["across the boundary"] = []
    for place, (before, whole) in enumerate(zip(begun, gone_on(engine, few, begun), strict=True)):
        n = len(before.token_ids)
        text, pair = text_of(engine, before.token_ids), text_of(engine, whole.token_ids[n - 1 : n + 1])
        if len(pair) == 2 and pair not in text:  # not a special token, and not there before
            with stopping_at(engine, (pair,)):
                [completion] = gone_on(engine, few, [before], [place])
            found["across the boundary"].append([len(completion.token_ids) - n, completion.text == text[:-1]])
    before = next(c for c in begun if len(text_of(engine, c.token_ids[:4])) == 4)
    text = text_of(engine, before.token_ids)
    with stopping_at(engine, (text[2:4],)):
        [completion] = gone_on(engine, few, [before])
        with engine.generating(prompts[:1], few, [0], begun=[before], stoppable=True) as generation:
            generation.step()
            [stopped] = generation.stop().values()
    found["in what was begun"] = [
        [len(c.token_ids), c.text == text[:2], c.finished, c.truncated, sum(s.num_tokens for s in c.spans)]
        for c in (completion, stopped)
    ]
    with stopping_at(engine, ("<|im_end|>",)):
        spelled = [written(engine, text) for text in (r"\boxed{4}<|im_end|>\boxed{7", "No.<|im_end|>\\boxed{4")]
        found["spelled"] = [
            c.text for c in gone_on(engine, Sampling(temperature=1.0, max_completion_tokens=60), spelled)
        ]
    return found


def text_of(engine: Engine, token_ids: np.ndarray) -> str:
    return engine.decode(token_ids.tolist(), special_tokens=False)


def written(engine: Engine, text: str) -> Completion:
    """Return a partial completion of these characters."""
    token_ids = np.array(engine._tokenizer.encode(text), np.int32)
    return NOTHING.extended(
        token_ids, np.zeros(len(token_ids)), engine.weight_version, text="", truncated=False, finished=False
    )


def gone_on(
    engine: Engine, sampling: Sampling, begun: list[Completion], seeds: list[int] | None = None
) -> list[Completion]:
    """Return the continued completions."""
    seeds, found = list(range(len(begun))) if seeds is None else seeds, {}
    with engine.generating([PROMPTS[0]] * len(begun), sampling, seeds, begun=begun) as generation:
        while generation.unfinished:
            found |= generation.step()
    return [found[place] for place in range(len(begun))]


@contextmanager
def stopping_at(engine: Engine, strings: tuple[str, ...], *token_ids: int) -> Iterator[None]:
    """Give an engine other stops. Building a new one would take seconds."""
    before = engine.stops, engine._endings
    engine.stops = Stops(token_ids=(*engine.stops.token_ids, *token_ids), strings=strings)
    engine._endings = Endings(engine.stops, lambda ids: engine.decode(ids, special_tokens=False))
    try:
        yield
    finally:
        engine.stops, engine._endings = before


def refusals(engine: Engine, folder: Path) -> dict[str, str]:
    sampling = Sampling(temperature=1.0, max_completion_tokens=4)
    return {
        "long": error_of(lambda: engine.generate([(5,), (5,) * MAX_TOKENS], sampling, [0, 1])),
        "empty": error_of(lambda: engine.generate([()], sampling, [0])),
        "number": error_of(lambda: engine.generate([(5,)], sampling, [0, 1])),
        "seed": error_of(lambda: engine.generate([(5,)], sampling, [-1])),
        "nothing left to sample": error_of(lambda: go_on(engine, sampling, np.arange(3, 7, dtype=np.int32))),
        "big seed": error_of(lambda: engine.generate([(5,)], sampling, [2**32])),
        "an engine over 3 of 2 processes": error_of(
            lambda: Engine(folder, RolloutConfig(tensor=3), dtype="float32", max_sequence_tokens=9, seed=0)
        ),
    }


def go_on(engine: Engine, sampling: Sampling, token_ids: np.ndarray) -> None:
    begun = replace(NOTHING, token_ids=token_ids, logprobs=token_ids.astype(np.float32))
    with engine.generating([(5,)], sampling, [0], begun=[begun]):
        pass


def loading(engine: Engine, folder: Path) -> dict[str, Any]:
    """Load new weights and the old ones again. Return versions, and answers to prompts in the prefix cache."""
    other = folder.with_name(f"{folder.name}-other")
    new, old = load_reference(other), load_reference(folder)
    found: dict[str, Any] = {"version before": engine.weight_version}
    completions(engine)  # the long prompts are cached now
    reset = engine._llm.reset_prefix_cache
    engine._llm.reset_prefix_cache = lambda: True
    load(engine, other, version=0)
    found["without a reset of the prefix cache"] = gap(new, completions(engine))
    engine._llm.reset_prefix_cache = reset
    load(engine, other, version=1)
    found["version after"] = engine.weight_version
    found["new weights"] = gap(new, completions(engine))
    found["new weights against the old model"] = gap(old, completions(engine))
    load(engine, folder, version=2)
    found["back again"] = gap(old, completions(engine))
    return found


def incomplete(engine: Engine, folder: Path) -> dict[str, Any]:
    """Leave a parameter out of an update. It is refused, and nothing works later."""
    version = engine.weight_version
    return {
        "error": error_of(lambda: load(engine, folder, version=99, left_out="model.layers.1.self_attn.qkv_proj.bias")),
        "version moved": engine.weight_version != version,
        "generate": error_of(lambda: completions(engine)),
        "load": error_of(lambda: load(engine, folder, version=100)),
    }


def interrupted(engine: Engine, folder: Path) -> dict[str, str]:
    """Fail in the middle of an update."""

    def update() -> None:
        with engine.updating(5) as weights:
            weights.target("model.norm.weight").zero_()
            raise OSError("the cable is out")

    return {"load": error_of(update), "generate": error_of(lambda: completions(engine))}


def process_left_alone(folder: Path, tensor: int) -> dict[str, Any]:
    """Build, use and close an engine. Return what has changed in the trainer's process."""

    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
        )

    variables = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LD_PRELOAD", "RANK", "LOCAL_RANK")}
    trainer_group = dist.new_group([0, 1])
    before = state()
    engine = build(folder, tensor)
    built = state() == before
    completions(engine)
    found: dict[str, Any] = {"random state": [built, state() == before]}
    found["environment"] = variables == {name: os.environ.get(name) for name in variables}
    found["version"] = engine.weight_version
    found["gap"] = gap(load_reference(folder), completions(engine))
    found["layout"] = [engine.num_replicas, engine.replica, engine.replica_size, engine.rank_in_replica]
    engine.close()
    engine.close()
    found["closed"] = error_of(lambda: completions(engine))
    one = torch.ones(1)
    dist.all_reduce(one, group=trainer_group)
    dist.all_reduce(one)
    dist.all_reduce(one, group=dist.new_group([0, 1]))
    linear = torch.nn.Linear(4, 4)
    linear(torch.randn(2, 4)).sum().backward()
    found["trainer's groups after close"] = one.item()
    found["autograd"] = linear.weight.grad is not None and torch.get_default_dtype() == torch.float32
    return found


def load(engine: Engine, folder: Path, *, version: int, left_out: str = "") -> None:
    """Load this rank's shards of a model folder, by the parameter map."""
    shards = engine_shards(read_shape(folder), tensor=engine.replica_size, rank=engine.rank_in_replica)
    reader = WeightReader(folder)
    with engine.updating(version) as weights:
        for name, shard in shards.items():
            if name != left_out:
                fill(weights.target(name), shard, reader.read)
                weights.complete(name)


def error_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def build(folder: Path, tensor: int) -> Engine:
    rollout = RolloutConfig(tensor=tensor, kv_cache_mib=1, max_concurrent=64)
    return Engine(folder, rollout, dtype="float32", max_sequence_tokens=MAX_TOKENS, seed=0)


def main(root: Path, tensor: int) -> None:
    dist.init_process_group("gloo")
    tied, untied = root / "tied", root / "untied"
    found: dict[str, Any] = {"process_left_alone": process_left_alone(untied, tensor)}
    checks: list[Callable[[Engine, Path], Any]] = [logprobs_match_transformers, seeds_decide, cached_prompt_tokens]
    if tensor == 1:
        checks += [sampled_frequencies, endings, refusals]
    checks += [stops, loading, stopped_and_gone_on, incomplete]
    engine = build(tied, tensor)
    for check in checks:
        found[check.__name__] = check(engine, tied)
    engine.close()
    engine = build(untied, tensor)
    found["loading_untied"] = loading(engine, untied)
    found["interrupted"] = interrupted(engine, untied)
    engine.close()
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    if dist.get_rank() == 0:
        write_result({"ranks": everything})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
