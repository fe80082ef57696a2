"""What the job scripts refuse to start, and whether their configurations fit their nodes. Without Slurm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rapo.config import Config
from megatron_rapo.config.file import load_config
from megatron_rapo.mcore.dry_run import dry_run
from megatron_rapo.preflight.checks import check_model, check_rollout, check_world_size
from megatron_rapo.preflight.fit import Machine, fits, needed
from megatron_rapo.preflight.memory import parameters
from megatron_rapo.preflight.seconds import HARDWARE
from tests.patience import HANG_S
from tests.qwen2_5 import QWEN2_5
from tests.short_runs import ROOT

SCRIPTS = {"rapo_7b": "7B", "rapo_3b": "3B", "grpo_7b": "7B"}


def script(name: str) -> str:
    return (ROOT / f"slurm/{name}.sh").read_text()


def option(name: str, text: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(\S+)$", text, re.MULTILINE)
    assert found, name
    return found[1]


def config(name: str) -> Config:
    return load_config(ROOT / f"examples/simplerl/{name}.toml")


@pytest.mark.parametrize(("name", "size"), SCRIPTS.items())
def test_configurations_fit_model_and_nodes(name: str, size: str) -> None:
    text, settings = script(name), config(name)
    assert f" examples/simplerl/{name}.toml models/Qwen2.5-{size}\n" in text
    assert settings.model.path.name == f"Qwen2.5-{size}"
    tasks = int(option("ntasks-per-node", text))
    assert tasks == int(option("gpus-per-node", text))
    world_size = tasks * int(option("nodes", text))
    check_world_size(settings, world_size)
    check_model(settings, QWEN2_5[size])
    check_rollout(settings, QWEN2_5[size], world_size)
    gpus = Machine(
        gpus=world_size,
        memory_bytes=80 * 2**30,
        overhead_bytes=4 * 2**30,
        hardware=HARDWARE["h100"],
        layers="transformer_engine",
    )
    assert fits(needed(QWEN2_5[size], settings, gpus), gpus)
    built = dry_run(settings, QWEN2_5[size], world=world_size)
    assert [each.numel for each in built] == parameters(QWEN2_5[size], settings)
    assert settings.reward.workers < int(option("cpus-per-task", text))  # and the process itself


@pytest.mark.parametrize("name", SCRIPTS)
def test_there_is_time_to_stop_before_the_limit(name: str) -> None:
    notice = re.fullmatch(r"B:USR1@(\d+)", option("signal", script(name)))
    assert notice and config(name).checkpoint.grace_s < int(notice[1])


def test_grpo_differs_from_rapo_in_its_penalty_only() -> None:
    rapo, grpo = config("rapo_7b"), config("grpo_7b")
    assert rapo.model_copy(update={"algorithm": grpo.algorithm}) == grpo
    assert (rapo.algorithm.divergence, grpo.algorithm.divergence) == ("forward_kl", "forward_kl_k3")
    assert (rapo.algorithm.phi_min, grpo.algorithm.phi_min) == (0.9, 1.0)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a job that lacks nothing until it asks Slurm for something, of a repository without models and data."""
    home = tmp_path / "home"
    home.mkdir()
    for folder in ("slurm", "examples"):
        (home / folder).symlink_to(ROOT / folder)
    problems = ROOT / "examples/tiny/heldout.jsonl"
    return {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "rapo_7b",
        "SLURM_SUBMIT_DIR": str(home),
        "SLURM_NTASKS_PER_NODE": "8",
        "RAPO_MODEL": str(ROOT / "examples/tiny/model"),
        "RAPO_TRAIN": str(problems),
        "RAPO_EVAL": str(problems),
        "RAPO_PYTHON": sys.executable,
        "RAPO_RUNS": str(tmp_path / "runs"),
    }


def refusal(environment: dict[str, str], folder: Path) -> str:
    """What the script says, copied to another folder as sbatch does."""
    copy = folder / "slurm_script"
    copy.write_text(script("rapo_7b"))
    done = subprocess.run(["bash", copy], env=environment, cwd=folder, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID: not set, so this is no Slurm job; start the script with sbatch."),
        (
            {"RAPO_HOME": "{here}"},
            "RAPO_HOME: {here}/slurm/launch.sh is not there; call sbatch in the repository, or export "
            "RAPO_HOME=/path/to/it.",
        ),
        (
            {"SLURM_GPUS_ON_NODE": "4"},
            "SLURM_NTASKS_PER_NODE=8: each process takes one GPU, and the job has 4 on a node; "
            "pass sbatch --ntasks-per-node=N --gpus-per-node=N with the same N.",
        ),
        (
            {"RAPO_MODEL": ""},
            "RAPO_MODEL={here}/home/models/Qwen2.5-7B: no such folder with a config.json; "
            "export RAPO_MODEL=FOLDER of a Hugging Face model.",
        ),
        (
            {"RAPO_TRAIN": ""},
            "RAPO_TRAIN={here}/home/data/simplerl-zero-8k.parquet: no such file; export RAPO_TRAIN=FILE.",
        ),
        ({"RAPO_EVAL": "{here}"}, "RAPO_EVAL={here}: no such file; export RAPO_EVAL=FILE."),
        (
            {"RAPO_CONFIG": "my.toml"},
            "RAPO_CONFIG={here}/home/my.toml: no such file; export RAPO_CONFIG=FILE.",
        ),
        (
            {"RAPO_RUNS": "{here}/slurm_script/runs"},
            "RAPO_RUNS={here}/slurm_script/runs: cannot be made (Not a directory); export RAPO_RUNS=FOLDER.",
        ),
        (
            {"RAPO_PYTHON": "{here}/bin/python"},
            "RAPO_PYTHON={here}/bin/python: no such program; export RAPO_PYTHON=/path/to/python or "
            "RAPO_CONTAINER=IMAGE.",
        ),
        (
            {"RAPO_PYTHON": "{bare}"},
            "RAPO_PYTHON={bare}: has no torch, megatron, vllm, transformers, math_verify; name the Python that the "
            "package was installed for (docs/gpus.md).",
        ),
        (
            {"RAPO_CONTAINER": "{here}/rapo.sqsh"},
            "RAPO_CONTAINER={here}/rapo.sqsh: no such file; make it with: enroot import -o {here}/rapo.sqsh "
            "docker://ADDRESS",
        ),
    ],
)
def test_refusals(environment: dict[str, str], tmp_path: Path, changed: dict[str, str], message: str) -> None:
    bare = tmp_path / "bare_python"
    bare.write_text(f'#!/bin/bash\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    places = {"here": tmp_path, "bare": bare}
    variables = environment | {name: value.format(**places) for name, value in changed.items()}
    assert refusal(variables, tmp_path) == f"error: {message.format(**places)}\n"


def test_gpus_that_torch_does_not_find(environment: dict[str, str], tmp_path: Path) -> None:
    variables = environment | {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": ""}
    assert re.fullmatch(
        rf"error: RAPO_PYTHON={re.escape(sys.executable)}: torch \S+ finds 0 of the node's 8 GPUs; install a build for "
        r"them, or ask for another node\.\n",
        refusal(variables, tmp_path),
    )
