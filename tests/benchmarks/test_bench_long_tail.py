"""The benchmark's figures by hand, of an engine whose completions are as long as they are told to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks import bench_long_tail
from benchmarks.environment import REPOSITORY
from megatron_rapo.data import EpochOrder
from megatron_rapo.monitor import Monitor
from megatron_rapo.rewards import Rewards
from megatron_rapo.rollout.sampler import Sampler
from megatron_rapo.training.group_scheduler import GroupScheduler
from megatron_rapo.types import Problem, Prompt
from tests.scripted import ScriptedEngine, ScriptedVerifier


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("waits", {"decode_steps": 2, "completion_tokens": 2, "stale_tokens": 0, "dropped_tokens": 0}),
        # A group of 2 + 9 tokens, three that were whole before, four new ones.
        (
            "carries, 1 step",
            {"decode_steps": 9, "completion_tokens": 25 / 8, "stale_tokens": 0.32, "dropped_tokens": 0},
        ),
        ("drops", {"decode_steps": 2, "completion_tokens": 2, "stale_tokens": 0, "dropped_tokens": 4 * 4 * 2}),
    ],
)
def test_figures_by_hand(tmp_path: Path, policy: str, expected: dict[str, float]) -> None:
    """Check the second of two steps. The prompt that is drawn first takes nine tokens each time, the others two."""
    spares, carried_steps = bench_long_tail.POLICIES[policy]
    config = bench_long_tail.settings(tmp_path, steps=2, oversampled_prompts=4 * spares, carried_steps=carried_steps)
    prompts = [Prompt(problem=Problem(id="", text="", answer=str(i)), text="", token_ids=(i,)) for i in range(24)]
    [first] = EpochOrder(24, seed=0).take(1)
    engine = ScriptedEngine(lambda prompt, _: 9 if prompt == first else 2)
    sampler = Sampler(engine, ScriptedVerifier(), Rewards(config.reward))
    rollouts = GroupScheduler(config, sampler=sampler, monitor=Monitor(), prompts=prompts)
    found = bench_long_tail.measure(rollouts, lambda version: setattr(engine, "weight_version", version), 2)
    assert found.pop("seconds") >= 0 and found == expected


def test_the_table_is_the_recorded_one(capsys: pytest.CaptureFixture[str]) -> None:
    file = REPOSITORY / "benchmarks/results/bench_long_tail_cpu.json"
    assert bench_long_tail.main(["--table", str(file)]) == 0
    table = capsys.readouterr().out.strip()
    assert table in (REPOSITORY / "docs/rollout.md").read_text()
    assert list(json.loads(file.read_text())["policies"]) == list(bench_long_tail.POLICIES)
