"""A folder in which the commands of README and docs can be run: the files that they name, in small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_rapo.cli import main
from tests.evaluation.known import right_of
from tests.qwen_run import QWEN2_5_7B, RUN
from tests.report.conftest import write_run
from tests.short_runs import ROOT
from tests.tiny_models import save_char_tokenizer, save_tiny_model

QWEN2_5_0_5B = QWEN2_5_7B | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
MORE_OF_RUN = """
[evaluation]
data = "heldout.jsonl"
[reward.length]
free_tokens = 1024
full_tokens = 3072
penalty = 1.0
[[reward.functions]]
name = "repetition"
function = "examples/custom_reward.py:repetition"
range = [-1.0, 0.0]
"""
AIME25_FIRST = "Find the sum of all integer bases $b>9$ for which $17_{b}$ is a divisor of $97_{b}$."
CHECKPOINT = "runs/mine/checkpoints/step-000100"


def make_workspace(folder: Path, mine: str) -> None:
    """Fill an empty folder, which must be the current one. `mine` is the text of mine.toml."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "mine.toml").write_text(mine)
    (folder / "run.toml").write_text(RUN.format(model="models/Qwen2.5-7B") + MORE_OF_RUN)
    _write_models(folder / "models")
    _write_data(folder)
    for name, lr in (("mine", 1e-6), ("other", 2e-6), ("quickstart", 2e-4)):
        write_run(folder / "runs" / name, steps=30, lr=lr)
    for step, right in ((0, (4, 2, 0)), (10, (5, 2, 0)), (20, (7, 3, 0)), (30, (8, 4, 0))):
        right_of(8, *right, k=(1, 8)).save(folder / f"runs/quickstart/evaluations/step-{step:06d}.json")
    for model, right in (("base", (4, 2, 0)), ("mine", (8, 4, 1))):
        right_of(8, *right, k=(1, 8), model=model).save(folder / f"{model}.json")
    assert main(["convert", "hf-to-megatron", "models/base", CHECKPOINT, "--processes", "1"]) == 0
    shutil.copytree(folder / "models/base", folder / "runs/mine/hf")


def _write_models(folder: Path) -> None:
    """Write a tiny model `base`, and large ones of which there are the config.json and a tokenizer."""
    save_tiny_model(folder / "base", tied=False, hidden_size=128, num_heads=4, num_kv_heads=4)
    shapes = {"Qwen2.5-0.5B": QWEN2_5_0_5B, "Qwen2.5-7B": QWEN2_5_7B, "Mistral-7B-v0.3": MISTRAL_7B}
    for name, shape in shapes.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(shape))
        save_char_tokenizer(folder / name)


def _write_data(folder: Path) -> None:
    sums = [
        {"problem": f"What is {i} + 3?", "answer": str(i + 3), "solution": rf"It is \boxed{{{i + 3}}}."}
        for i in range(8)
    ]
    _write_rows(folder / "problems.jsonl", sums)
    _write_rows(folder / "heldout.jsonl", sums[:2])
    exported = [{"text": row["problem"], "meta": {"result": row["answer"]}} for row in sums]
    _write_rows(folder / "exported.jsonl", exported)
    judged = [{"completion": f"It is {answer}.\n#### {answer}", "answer": "4"} for answer in (4, 5)]
    _write_rows(folder / "completions.jsonl", judged)
    (folder / "data").mkdir()
    sets = {"aime25": [{"problem": AIME25_FIRST, "answer": "70"}], "math500": sums[:3], "simplerl-zero-8k": sums}
    for name, rows in sets.items():
        _write_rows(folder / f"data/{name}.jsonl", rows)
        made = ["prepare", f"data/{name}.jsonl", f"data/{name}.parquet", "--name", name]
        assert main(["prepare-data", *made]) == 0


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
