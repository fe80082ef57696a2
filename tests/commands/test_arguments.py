"""Values of options that cannot work, and what is said of them."""

import argparse

import pytest

from megatron_rapo import cli
from megatron_rapo.commands.arguments import number, whole_number


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("64", 64), (" 7 ", 7), ("007", 7)])
def test_whole_numbers(text, value):
    assert whole_number(1, 64)(text) == value


@pytest.mark.parametrize("text", ["0", "65", "-1", "+1", "1.0", "1e1", "", "x", "1_0", "\u0663", "9" * 5000])
def test_what_is_no_whole_number(text):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        whole_number(1, 64)(text)
    shown = repr(text) if len(text) < 80 else f"'{'9' * 79}... (5,002 characters)"
    assert str(refused.value) == f"{shown}: not a whole number from 1 to 64"


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1e-3", 1e-3), ("80", 80.0), (".5", 0.5)])
def test_numbers(text, value):
    assert number(0, 80)(text) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1e-9", "80.1", "1e400", "", "x"])
def test_what_is_no_number(text):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        number(0, 80)(text)
    assert str(refused.value) == f"{text!r}: not a number from 0 to 80"


def test_numbers_above_a_limit():
    assert number(0, 80, above=True)("1e-9") == 1e-9
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        number(0, 1e6, above=True)("0")
    assert str(refused.value) == "'0': not a number above 0 and up to 1e+06"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("preflight run.toml --gpus 0", "argument --gpus: '0': not a whole number from 1 to 1,000,000"),
        ("preflight run.toml --gpus=-8", "argument --gpus: '-8': not a whole number from 1 to 1,000,000"),
        (
            "preflight run.toml --gpus 8 --completion-tokens=-5",
            "argument --completion-tokens: '-5': not a whole number from 1 to 1,000,000,000",
        ),
        (
            "preflight run.toml --gpus 8 --gpu-memory-gib nan",
            "argument --gpu-memory-gib: 'nan': not a number above 0 and up to 1e+06",
        ),
        (
            "preflight run.toml --gpus 8 --overhead-gib=-1",
            "argument --overhead-gib: '-1': not a number from 0 to 1e+06",
        ),
        ("report runs/mine --rollouts-mib nan", "argument --rollouts-mib: 'nan': not a number from 0 to 1e+06"),
        (
            "train run.toml --profile 1-100000000000",
            "argument --profile: '1-100000000000': more than 1,000 steps, and each writes a trace; write e.g. "
            "--profile 2,10-12",
        ),
        ("convert verify a b --tolerance nan", "argument --tolerance: 'nan': not a number from 0 to 1e+09"),
        ("convert verify a b --tolerance=-1", "argument --tolerance: '-1': not a number from 0 to 1e+09"),
        (
            "convert reshard a b --tensor 0",
            "argument --tensor: '0': not a whole number from 1 to 16,384",
        ),
        (
            "convert megatron-to-hf a b --max-shard-size 0GB",
            "argument --max-shard-size: '0GB': not a size; write for example 500MB or 5GB",
        ),
        ("prepare-data prepare a b --overlap nan", "argument --overlap: 'nan': not a number from 0 to 1"),
        (
            "check-verifier a.jsonl --answer a --others=-1",
            "argument --others: '-1': not a whole number from 0 to 1,000,000",
        ),
    ],
)
def test_options_of_commands(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(f": error: {said}\n")


def test_a_garbled_rank(capsys, monkeypatch):
    """The handler of errors asks for the rank, too."""
    monkeypatch.setenv("RANK", "x")
    assert cli.main(["train", "run.toml"]) == 2
    assert capsys.readouterr().err == (
        "error: RANK=x: not a whole number from 0 to 1000000; unset it, or start the run with torchrun or srun.\n"
    )
