"""Check the results of engine_worker.py on two processes: two replicas with TP=1, one engine with TP=2."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_rapo.rollout import Sampling
from megatron_rapo.types import Outcome
from megatron_rapo.verifier import last_boxed
from megatron_rapo.verifier.verify import judge_parsed
from tests.launch import REPOSITORY, run_distributed
from tests.patience import HANG_S
from tests.tiny_models import save_tiny_model

HERE = Path(__file__).parent
TOLERANCE = 2e-5  # nats: float32 rounding of these models (1e-5) against float64
STALE = 0.5  # nats; wrong weights are further off than this

Found = list[dict[str, Any]]  # of each rank


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, tied, seed in (
        ("tied", True, 0),
        ("tied-other", True, 1),
        ("untied", False, 0),
        ("untied-other", False, 1),
    ):
        save_tiny_model(root / name, tied=tied, num_kv_heads=2, seed=seed)
    return root


def run_worker(models: Path, tensor: int) -> Found:
    result = run_distributed(HERE / "engine_worker.py", 2, models, tensor)
    assert result is not None
    ranks: Found = result["ranks"]
    return ranks


@pytest.fixture(scope="module")
def replicas(models: Path) -> Found:
    return run_worker(models, 1)


@pytest.fixture(scope="module")
def tensor_parallel(models: Path) -> Found:
    return run_worker(models, 2)


@pytest.fixture(params=["replicas", "tensor_parallel"])
def ranks(request: pytest.FixtureRequest) -> Found:
    found: Found = request.getfixturevalue(request.param)
    return found


def test_layout(replicas: Found, tensor_parallel: Found) -> None:
    assert [rank["process_left_alone"]["layout"] for rank in replicas] == [[2, 0, 1, 0], [2, 1, 1, 0]]
    assert [rank["process_left_alone"]["layout"] for rank in tensor_parallel] == [[1, 0, 2, 0], [1, 0, 2, 1]]


def test_before_the_first_update_the_weights_are_the_folders(ranks: Found) -> None:
    for rank in ranks:
        assert rank["process_left_alone"]["version"] is None
        assert rank["process_left_alone"]["gap"][0] < TOLERANCE


@pytest.mark.parametrize("setting", ["T=1", "T=0.7", "T=1.3 top_p=0.8", "greedy"])
def test_logprobs_are_those_of_the_sampled_distribution(ranks: Found, setting: str) -> None:
    for rank in ranks:
        gap, spread = rank["logprobs_match_transformers"][setting]
        assert gap < TOLERANCE
        assert spread > 0.1  # they say something
        assert rank["logprobs_match_transformers"]["T=0.7 read as T=1"][0] > STALE


def test_temperature_0_is_greedy(ranks: Found) -> None:
    assert all(rank["logprobs_match_transformers"]["greedy is the most likely"] for rank in ranks)


def test_a_seed_decides_the_tokens(replicas: Found, tensor_parallel: Found) -> None:
    first, *others = [rank["seeds_decide"] for rank in replicas + tensor_parallel]
    assert first["tokens"][: len(first["alone"])] == first["alone"]  # whatever else is in the batch
    assert all(other["tokens"] == first["tokens"] for other in others)  # on whichever replica
    assert first["unchanged by other seeds"] == 0
    assert first["same seed"] and not first["other seed"]


def test_a_call_does_not_go_on_from_what_the_one_before_computed(ranks: Found) -> None:
    """So an evaluation does not change training, whatever a kernel's rounding is."""
    for rank in ranks:
        found = rank["cached_prompt_tokens"]
        assert found["first"] == found["second"] == [1, 200, 0] and found["without a reset"] == [1, 200, 128]


def test_a_groups_prompt_is_computed_once(ranks: Found) -> None:
    """vLLM registers a block by its content when it is scheduled. The other requests of the step reuse it."""
    assert all(rank["cached_prompt_tokens"]["a group"] == [1, 4 * 200, 3 * 128] for rank in ranks)


def test_what_is_stopped_is_the_beginning_of_what_would_have_been(ranks: Found) -> None:
    """Finished completions are as without a stop. All processes of an engine stop at the same place."""
    for rank in ranks:
        found = rank["stopped_and_gone_on"]
        assert found["finished are the same"] and found["others are their beginnings"] and found["nothing is left"]
        assert len(found["order"]) >= 5 and len(found["tokens"]) == 15 - len(found["order"])
        assert max(found["tokens"]) > 9 and found["said of them"] == [["", False, False]]
        assert (found["order"], found["tokens"]) == (
            ranks[0]["stopped_and_gone_on"]["order"],
            ranks[0]["stopped_and_gone_on"]["tokens"],
        )


def test_of_what_waited_for_room_in_the_cache_there_is_nothing_yet(replicas: Found) -> None:
    assert all(min(rank["stopped_and_gone_on"]["tokens"]) == 0 for rank in replicas)


def test_each_token_has_the_log_prob_of_the_weights_that_sampled_it(ranks: Found) -> None:
    for rank in ranks:
        found = rank["stopped_and_gone_on"]
        assert found["what was begun is kept"] and found["gap"] < TOLERANCE
        assert found["gap of the first tokens to the new weights"] > STALE
        for spans, begun, (length, truncated, finished) in zip(
            found["spans"], found["tokens"], found["lengths"], strict=True
        ):
            assert spans == [[True, 2, begun]] * (begun > 0) + [[False, 20, length - begun]] and finished
            assert length <= 60 and (length == 60 or not truncated)


def test_consecutive_seeds_sample_the_distribution(replicas: Found) -> None:
    for rank in replicas:
        degrees = rank["sampled_frequencies"]["cells"] - 1
        deviations = (rank["sampled_frequencies"]["chi2"] - degrees) / math.sqrt(2 * degrees)
        assert abs(deviations) < 4


def test_endings_and_text(replicas: Found) -> None:
    for rank in replicas:
        found = rank["endings"]
        assert found["ended"] > 5 and found["truncated"] > 5
        assert found["ended by eos"] and found["eos only at the end"]
        assert found["truncated at the limit"]
        assert found["texts"]  # without special tokens
        assert found["dtypes"] == ["int32 float32"]
        assert found["a full sequence"] == [1, True]


def test_a_completion_stops_at_a_string_or_a_token(ranks: Found) -> None:
    """It has the same tokens as without the stop, up to the one that stopped it. Its text ends before that."""
    for found in [rank["stops"] for rank in ranks]:
        assert found["stopped"][0] > found["stopped"][1] > 3
        assert found["lengths"] == found["expected lengths"] and len(set(found["lengths"])) > 10
        assert found["tokens are the same"] and found["gap"] < TOLERANCE
        assert found["texts"] == found["expected texts"]
        assert sum(found["truncated"]) > 3
        assert {length for length, cut in zip(found["lengths"], found["truncated"], strict=True) if cut} == {60}


def test_a_carried_completion_stops_at_what_it_was_begun_with(ranks: Found) -> None:
    for found in [rank["stops"] for rank in ranks]:
        assert found["across the boundary"] == [[1, True]] * len(found["across the boundary"])
        assert len(found["across the boundary"]) >= 2  # so many that the small cache has room for
        assert found["in what was begun"] == [[4, True, True, False, 4]] * 2


def test_what_is_behind_the_end_of_a_turn_is_not_judged(replicas: Found) -> None:
    """The model spells the token. The answer before it counts, the answer after it does not."""
    verdicts = []
    for text in replicas[0]["stops"]["spelled"]:
        answer = last_boxed(text)
        verdicts.append(Outcome.NO_ANSWER if answer is None else judge_parsed(answer, "4"))
    assert verdicts == [Outcome.CORRECT, Outcome.NO_ANSWER]
    assert replicas[0]["stops"]["spelled"] == [r"\boxed{4}", "No."]


def test_refusals(replicas: Found) -> None:
    for rank in replicas:
        found = rank["refusals"]
        assert found["long"].startswith("ValueError: prompt 1 has 320 tokens: ") and "1 to 319" in found["long"]
        assert found["empty"].startswith("ValueError: prompt 0 has 0 tokens")
        assert found["number"] == (
            "ValueError: 1 prompts, 2 seeds, 1 begun completions: give one seed for each prompt, and a begun "
            "completion for each prompt or for none."
        )
        assert found["nothing left to sample"] == (
            "ValueError: completion 0 has 4 of 4 tokens: there is nothing left to sample; leave it out."
        )
        assert found["seed"].startswith("ValueError: seed 0 is -1")
        assert found["big seed"].startswith("ValueError: seed 0 is 4294967296")
        assert found["an engine over 3 of 2 processes"].startswith("ValueError: rollout.tensor=3: does not divide")


@pytest.mark.parametrize("temperature", [0.001, 2.1, -1.0])
def test_temperatures_that_vllm_would_change_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"0\.01 to 2\.0"):
        Sampling(temperature=temperature, max_completion_tokens=1)


@pytest.mark.parametrize("model", ["loading", "loading_untied"])
def test_loading(replicas: Found, tensor_parallel: Found, model: str) -> None:
    for found in [rank[model] for rank in replicas + tensor_parallel]:
        assert (found["version before"], found["version after"]) == (None, 1)
        assert found["new weights"][0] < TOLERANCE
        assert found["new weights against the old model"][0] > STALE
        assert found["back again"][0] < TOLERANCE


def test_the_prefix_cache_is_stale_unless_reset(replicas: Found) -> None:
    """This is why an update resets it: the same prompts were answered with the old weights before."""
    assert all(rank["loading"]["without a reset of the prefix cache"][0] > STALE for rank in replicas)


def test_an_update_that_leaves_something_out_names_it_and_poisons_the_engine(ranks: Found) -> None:
    for rank in ranks:
        found = rank["incomplete"]
        assert found["error"] == (
            "RuntimeError: 1 of the engine's parameters were not written: model.layers.1.self_attn.qkv_proj.bias"
        )
        assert not found["version moved"]
        assert found["generate"].startswith("RuntimeError: Engine: unusable since loading weight version 99 failed (1")
        assert found["load"].startswith("RuntimeError: Engine: unusable since loading weight version 99 failed")


def test_an_update_that_fails_poisons_the_engine(ranks: Found) -> None:
    for rank in ranks:
        assert rank["interrupted"]["load"] == "OSError: the cable is out"
        assert "loading weight version 5 failed (the cable is out)" in rank["interrupted"]["generate"]


def test_the_process_stays_the_trainers(ranks: Found) -> None:
    for rank in ranks:
        found = rank["process_left_alone"]
        assert found["random state"] == [True, True]
        assert found["environment"]
        assert found["closed"] == "RuntimeError: Engine: closed; build a new one."
        assert found["trainer's groups after close"] == 8
        assert found["autograd"]


ALONE = """
import sys
from pathlib import Path
import torch.distributed as dist
from megatron_rapo.config import RolloutConfig
from megatron_rapo.rollout import Engine, Sampling
from tests.patience import HANG_S

def build():
    return Engine(Path(sys.argv[1]), RolloutConfig(kv_cache_mib=1), dtype="bfloat16", max_sequence_tokens=64, seed=0)

try:
    build()
except RuntimeError as error:
    print(error)
assert "vllm" not in sys.modules
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
engine = build()
sampling = Sampling(temperature=1.0, max_completion_tokens=8)
print(len(engine.generate([(5, 6, 7)], sampling, [3])[0].token_ids))
del engine
dist.barrier()  # vLLM would have destroyed the process group
dist.destroy_process_group()
print("done")
"""


def test_one_process_without_a_launcher(models: Path, tmp_path: Path) -> None:
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in launcher}
    env |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE, str(models / "tied"), str(tmp_path / "store")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    refusal, length, end = done.stdout.strip().splitlines()
    assert "call torch.distributed.init_process_group first" in refusal
    assert 1 <= int(length) <= 8
    assert end == "done"
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
