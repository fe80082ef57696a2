"""The command line as users start it; what is slow to import must not be imported before the settings are good."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megatron_rapo import cli, run
from megatron_rapo.checkpoints.folders import CheckpointError
from megatron_rapo.commands.train import REQUEUE_STATUS
from megatron_rapo.config import ConfigError
from megatron_rapo.data.rows import DataError
from megatron_rapo.errors import InputError
from megatron_rapo.evaluation import evaluate
from tests.evaluation.known import right_of
from tests.patience import HANG_S

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "megatron", "vllm", "datasets")
GOOD = """
[model]
path = "no/such/model"
[data]
train = "train.jsonl"
[batch]
prompts_per_step = 8
[run]
folder = "runs/one"
steps = 3
"""


def command(*arguments, columns=80, environment=None):
    """Run `python -m megatron_rapo ...`: the finished process, and the heavy packages that it imported."""
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "megatron_rapo", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": str(columns)} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    lines = finished.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    assert "pydantic" in imported or not lines
    finished.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return finished, imported & set(HEAVY)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("columns", [60, 120])
def test_help(columns):
    finished, heavy = command("--help", columns=columns)
    assert finished.returncode == 0 and finished.stderr == "" and not heavy
    text = finished.stdout
    assert text.startswith("usage: megatron_rapo [-h] COMMAND ...\n")
    words = " ".join(text.split())
    assert "train train a policy; start it with launch or srun" in words
    assert "evaluate score a model on held-out problems: pass@k, maj@k; start it with launch or srun" in words
    assert "compare show what models scored on the same problems; runs none of them" in words
    assert "report write one HTML file that shows runs; it opens anywhere, without a network" in words
    assert "\n  megatron-rapo launch --nproc-per-node 2 train examples/quickstart.toml\n" in text
    assert "settings describe every setting, or those of SECTION[.FIELD]" in words
    assert text.endswith(
        "`megatron-rapo settings` describes every setting (also docs/settings.md). Each run writes those it used to\n"
        "RUN/config.json.\n"
    )


@pytest.mark.parametrize("columns", [60, 120])
def test_help_of_train(columns):
    finished, heavy = command("train", "--help", columns=columns)
    assert finished.returncode == 0 and finished.stderr == "" and not heavy
    text = finished.stdout
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join(text.split())
    for said in (
        "usage: megatron_rapo train [-h] [--set SECTION.FIELD=VALUE] [--resume | --overwrite] [--profile STEPS] "
        "CONFIG.toml",
        "CONFIG.toml the run's settings",
        "--set SECTION.FIELD=VALUE override one setting; may be given many times",
        "--resume go on from the run folder's latest checkpoint",
        "--overwrite delete an earlier run in the run folder first",
        "--profile STEPS write a Chrome trace of these steps, say 2,10-12, to RUN/profile/ (docs/profiling.md)",
    ):
        assert said in words


def test_what_train_help_looks_like_on_a_wide_terminal():
    finished, _ = command("train", "--help", columns=115)
    assert finished.stdout == textwrap.dedent("""\
        usage: megatron_rapo train [-h] [--set SECTION.FIELD=VALUE] [--resume | --overwrite] [--profile STEPS]
                                   CONFIG.toml

        Train a policy; start it with launch or srun.

        positional arguments:
          CONFIG.toml           the run's settings

        options:
          -h, --help            show this help message and exit
          --set SECTION.FIELD=VALUE
                                override one setting; may be given many times
          --resume              go on from the run folder's latest checkpoint
          --overwrite           delete an earlier run in the run folder first
          --profile STEPS       write a Chrome trace of these steps, say 2,10-12, to RUN/profile/ (docs/profiling.md)
        """)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "megatron_rapo: error: the following arguments are required: COMMAND"),
        (["tarin", "run.toml"], "megatron_rapo: error: argument COMMAND: invalid choice: 'tarin'"),
        (["--foo", "train"], "megatron_rapo: error: unrecognized arguments: --foo"),
        (["train"], "megatron_rapo train: error: the following arguments are required: CONFIG.toml"),
        (["train", "run.toml", "--resume", "--overwrite"], "argument --overwrite: not allowed with argument --resume"),
        (["evaluate", "run.toml", "--resume"], "megatron_rapo evaluate: error: unrecognized arguments: --resume"),
    ],
)
def test_wrong_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.startswith("usage: megatron_rapo") and not printed.out


BAD_SETTINGS = [
    (["batch.completions_per_prompt=1"], ["batch.completions_per_prompt=1: group-relative advantages need at least 2"]),
    (["run.step=3", "model.path=7"], ["model.path=7: not a string; ", "run.step=3: no such setting; did you mean st"]),
]


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_no_file(name, tmp_path):
    """Said at once: without an import of what takes seconds."""
    path = tmp_path / "none.toml"
    finished, heavy = command(name, path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"error: {path}: no such configuration file; check the path."
    assert not heavy


def test_bad_settings(config):
    (overrides, expected), (more, also) = BAD_SETTINGS
    finished, heavy = command("train", config, *(f"--set={override}" for override in overrides + more))
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("error: ") and "Traceback" not in finished.stderr
    assert len(finished.stderr.splitlines()) == 3
    assert all(line in finished.stderr for line in expected + also)
    assert not heavy


def test_good_settings_go_on_to_what_is_checked_next(config):
    """The model's folder, which is not there; it takes torch to find out."""
    finished, heavy = command("train", config)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.splitlines()[-1] == (
        "error: model.path=no/such/model: no such folder; give a folder with config.json and *.safetensors."
    )
    assert "Traceback" not in finished.stderr
    assert "torch" in heavy and not heavy & {"megatron", "vllm"}


@pytest.mark.parametrize(("finished", "status"), [(True, 0), (False, REQUEUE_STATUS)])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"resume": False, "overwrite": False, "profile": ()}),
        (["--resume"], {"resume": True, "overwrite": False, "profile": ()}),
        (["--overwrite"], {"resume": False, "overwrite": True, "profile": ()}),
        (["--profile", "4"], {"resume": False, "overwrite": False, "profile": (4,)}),
        (["--profile", "2,4-5"], {"resume": False, "overwrite": False, "profile": (2, 4, 5)}),
    ],
)
def test_train_gets_its_settings(config, monkeypatch, arguments, expected, finished, status):
    called = {}

    def train(config, **options):
        called.update(config=config, options=options)
        return finished

    monkeypatch.setattr(run, "train", train)
    assert cli.main(["train", str(config), *arguments, "--set", "run.steps=5", "--set=run.seed=6"]) == status
    assert called["options"] == expected
    assert (called["config"].run.steps, called["config"].run.seed) == (5, 6)


@pytest.mark.parametrize("steps", ["two", "2,", "5-4", "1-2-3", "-2"])
def test_profile_of_no_steps(config, capsys, steps):
    with pytest.raises(SystemExit):
        cli.main(["train", str(config), f"--profile={steps}"])
    said = f"{steps!r}: neither steps nor ranges of steps, with commas between; write e.g. --profile 2,10-12"
    assert said in capsys.readouterr().err


@pytest.fixture
def evaluated(config, monkeypatch):
    """evaluated(arguments...): the settings and options that `evaluate` gets."""

    def evaluated(*arguments):
        called = []
        monkeypatch.setattr(evaluate, "evaluate_model", lambda config, **options: called.append((config, options)))
        overrides = ["--set", "model.path=other", "--set", "evaluation.data=held.jsonl"]
        assert cli.main(["evaluate", str(config), *overrides, *arguments]) == 0
        return called[0]

    return evaluated


@pytest.mark.parametrize(
    ("arguments", "output", "model"),
    [
        ([], None, "other"),
        (["--output", "a/b.jsonl"], "a/b.jsonl", "other"),
        (["--model", "runs/mine/checkpoints/step-000100"], None, "runs/mine/checkpoints/step-000100"),
    ],
)
def test_evaluate_gets_its_settings(evaluated, arguments, output, model):
    settings, options = evaluated(*arguments)
    assert options == {"output": output and Path(output)} and settings.model.path == Path(model)


@pytest.mark.parametrize(
    ("arguments", "k"),
    [
        ([], (1, 4, 16)),
        (["--k", "1"], (1,)),
        (["--k=1,2, 8"], (1, 2, 8)),
        (["--set", "evaluation.samples_per_problem=256", "--k", "1,256"], (1, 256)),
        (["--k", "1,2", "--set", "evaluation.samples_per_problem=2"], (1, 2)),  # the default k would be refused
        (["--set", "evaluation.k=[4]", "--k", "2"], (2,)),
        (["--k", "2", "--set", "evaluation.k=[4]"], (4,)),  # the last one counts
    ],
)
def test_k(evaluated, arguments, k):
    settings, _ = evaluated(*arguments)
    assert settings.evaluation.k == k


@pytest.mark.parametrize("k", ["1,x", "1,,4", "", "1.5", "1 4", "[1,4]"])
def test_k_that_is_no_list_of_numbers(config, capsys, k):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(config), "--k", k])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"evaluate: error: argument --k: {k!r}: not whole numbers with commas between; write e.g. --k 1,4,16\n"
    )


@pytest.mark.parametrize("k", ["0", "1,32", "-1,4"])
def test_k_that_the_samples_cannot_give(config, k):
    finished, heavy = command("evaluate", config, "--set=evaluation.data=held.jsonl", f"--k={k}")
    assert (finished.returncode, finished.stdout) == (2, "") and not heavy
    assert finished.stderr.startswith(f"error: evaluation.k={json.loads(f'[{k}]')}: each k must be between 1 and ")


def test_compare_reads_files_and_nothing_else(tmp_path):
    """Without an import of what takes seconds."""
    base, mine = tmp_path / "base.json", tmp_path / "mine.json"
    right_of(2, 0, 1, k=(1, 2)).save(base)
    right_of(2, 2, 1, k=(1, 2), model="runs/mine/hf").save(mine)
    finished, heavy = command("compare", base, mine, "--k=2", "--hard", tmp_path / "hard.jsonl")
    assert (finished.returncode, finished.stderr) == (0, "") and not heavy
    assert "pass@2  0.500  1.000      +0.500  +0.000 to +1.000  1\n" in finished.stdout
    assert "pass@1" not in finished.stdout.partition("runs/mine/hf")[2]
    assert finished.stdout.endswith(f"{tmp_path}/hard.jsonl: 1 of 2 problems\n")


def test_compare_without_a_file(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/none.json: cannot be read (No such file or directory); name a .json file of scores that "
        "`evaluate --output` wrote beside its samples.\n"
    )


def test_help_of_evaluate():
    finished, heavy = command("evaluate", "--help", columns=60)
    assert finished.returncode == 0 and finished.stderr == "" and not heavy
    assert max(map(len, finished.stdout.splitlines())) <= 60
    words = " ".join(finished.stdout.split())
    for said in (
        "--model PATH a Hugging Face folder, RUN/checkpoints/step-N, or RUN for its latest checkpoint;",
        "--k K,K,... the k of pass@k; short for --set evaluation.k=[K,K,...]",
        "--output SAMPLES.jsonl keep every sample in this file, and the scores in SAMPLES.json;",
    ):
        assert said in words


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("run.folder=x: holds a run."), 2, "error: run.folder=x: holds a run.\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            RuntimeError("[gloo/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4567"),
            1,
            "rank 0: lost another process of this run ([gloo/tcp/pair.cc:547] Connection closed by peer "
            "[127.0.0.1]:4567); see its own message.\n",
        ),
    ],
)
def test_status(config, monkeypatch, capsys, error, status, said):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(run, "train", fail)
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["train", str(config)]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, InputError])
@pytest.mark.parametrize(("rank", "prefix"), [("0", ""), ("1", "rank 1: "), ("7", "rank 7: ")])
def test_the_first_process_speaks_first(config, monkeypatch, capsys, kind, rank, prefix):
    """The others wait: the launcher ends them in that time, unless the fault is theirs alone."""
    waited = []

    def fail(*arguments, **options):
        raise kind("train.jsonl: no such file.")

    monkeypatch.setattr(run, "train", fail)
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["train", str(config)]) == 2
    assert capsys.readouterr().err == f"{prefix}error: train.jsonl: no such file.\n"
    assert waited == ([] if rank == "0" else [cli.FIRST_SPEAKS_S])


def test_what_a_file_says_does_not_steer_the_terminal(config, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise DataError("train.jsonl:1: no column 'problem'; set data.problem_field to one of \x1b[2Jtext, \ud800.")

    monkeypatch.setattr(run, "train", fail)
    assert cli.main(["train", str(config)]) == 2
    assert capsys.readouterr().err == (
        "error: train.jsonl:1: no column 'problem'; set data.problem_field to one of \\x1b[2Jtext, \\ud800.\n"
    )


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, AssertionError])
def test_what_is_no_fault_of_the_input_is_not_hidden(config, monkeypatch, kind):
    def fail(*arguments, **options):
        raise kind("a flaw")

    monkeypatch.setattr(run, "train", fail)
    with pytest.raises(kind, match="a flaw"):
        cli.main(["train", str(config)])
