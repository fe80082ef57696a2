"""The benchmark's figures by hand, and one case of it in small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks import bench_packing
from benchmarks.bench_packing import Taken
from megatron_rapo.scoring.packing import pack
from megatron_rapo.types import TrainingSequence

LENGTHS = [8, 2, 4, 3, 1]


def sequence(length: int, prompt_length: int) -> TrainingSequence:
    return TrainingSequence(
        token_ids=np.arange(1, length + 1, dtype=np.int32),
        prompt_length=prompt_length,
        engine_logprobs=np.full(length - prompt_length, -1.0, np.float32),
        advantage=1.0,
        phi=0.5,
        reward=1.0,
    )


def test_rows_by_hand() -> None:
    """16 tokens hold two of 8; sorted, two of 8, and then as many as one of 3 is long."""
    assert bench_packing.in_order(LENGTHS, 16) == [[0, 1], [2, 3], [4]]
    assert bench_packing.longest_first(LENGTHS, 16) == [[0, 2], [3, 1, 4]]
    assert bench_packing.useful_padded(LENGTHS, 16) == 18 / (2 * 8 + 2 * 4 + 1)


def test_padding_is_in_no_loss() -> None:
    batch = bench_packing.padded([sequence(5, 2), sequence(3, 1)], [0, 1])
    assert batch.token_ids_T.tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 5, 10]
    assert batch.mask_T.tolist() == [t in (1, 2, 3, 5, 6) for t in range(10)]


def test_summary_and_targets_by_hand() -> None:
    batch = pack([sequence(5, 2)], [0], context=1, num_tokens=5)
    result = {"loss": 2.0, "grad_norm": 1.0}
    packed = [Taken({"score": s, "train": 2 * s}, result) for s in (1.0, 2.0)]
    padded = [Taken({"score": 4.0, "train": 4.0}, {"loss": 2.1, "grad_norm": 1.0}) for _ in range(2)]
    sides = bench_packing.summary(
        10,
        {"packed": [batch, batch], "padded": [batch] * 4, "padded, sorted": [batch] * 3},
        {"packed": packed, "padded": padded, "padded, sorted": packed},
    )
    assert sides["padded"] == {
        "microbatches": 4,
        "useful": 0.5,
        "score_s": 4.0,
        "packed_of_score": 0.375,  # median of 1/4 and 2/4
        "train_s": 4.0,
        "packed_of_train": 0.75,
        "error_against_packed": 0.05,
    }
    assert sides["packed"]["useful"] == 1.0 and sides["packed"]["score_s"] == 1.5
    planned = {"layout": "DP8", "tokens_per_microbatch": 1, "useful": 0.94, "imbalance": 0.01}
    targets = bench_packing.targets_of([planned], [{"case": "small", "sides": sides}])
    assert [target["met"] for target in targets] == [False, True, True, True, False, True, True]


def test_what_is_planned_for_a_pipeline() -> None:
    planned = bench_packing.plan("DP4 PP4 VPP2", 32_768)
    assert planned["microbatches"] % 4 == 0
    assert planned["useful"] > 0.99 and planned["imbalance"] < 0.01


def test_every_side_trains_the_same() -> None:
    case = replace(bench_packing.CASES["1M-512"], sequences=6, longest=64, tokens_per_microbatch=128)
    found = bench_packing.measure_apart(case, repeats=1)
    assert found["sides"]["packed"]["useful"] == 1.0 > found["sides"]["padded"]["useful"]
    assert all(side["error_against_packed"] < 1e-5 for side in found["sides"].values())
    assert found["sides"]["packed"]["train_s"] > 0
