"""From a file and --set to a configuration: names, overrides, files and their bases."""

from pathlib import Path

import pytest

from megatron_rapo.config.file import load_config
from megatron_rapo.preflight.checks import check_world_size
from tests.settings import EVALUATION, MINIMAL, functions, refusal


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.step=5", "run.step=5: no such setting; did you mean steps?"),
        ("algorithm.phi_mim=0.5", "algorithm.phi_mim=0.5: no such setting; did you mean phi_min?"),
        ("rolout.tensor=2", "rolout={'tensor': 2}: no such setting; did you mean rollout?"),
        ("run.zzz=5", "run.zzz=5: no such setting; known names here: folder, steps, seed, deterministic, timeout_s."),
        (
            "run.a.b=5",
            "run.a={'b': 5}: no such setting; known names here: folder, steps, seed, deterministic, timeout_s.",
        ),
        (
            functions('name="own", wait=1.0'),
            "reward.functions.0.wait=1.0: no such setting; did you mean weight?",
        ),
        (
            "reward.length={free_token=1, full_tokens=2, penalty=1.0}",
            "reward.length.free_tokens: required and not set; add it to the file or pass --set "
            "reward.length.free_tokens=...\nreward.length.free_token=1: no such setting; did you mean free_tokens?",
        ),
        (
            "zzz.a=5",
            "zzz={'a': 5}: no such setting; known names here: model, data, reward, batch, algorithm, parallel, "
            "rollout, reshard, memory, optimizer, precision, checkpoint, monitor, evaluation, run.",
        ),
    ],
)
def test_unknown_names(load, override, message):
    assert refusal(load, override) == message


def test_unknown_name_in_a_section_that_may_be_left_out(load):
    message = refusal(load, *EVALUATION, "evaluation.sample_per_problem=5")
    assert message == "evaluation.sample_per_problem=5: no such setting; did you mean samples_per_problem?"


def test_what_must_be_set(load):
    assert refusal(load, "evaluation.k=[1]") == (
        "evaluation.data: required and not set; add it to the file or pass --set evaluation.data=..."
    )
    assert refusal(load, text=MINIMAL.replace('train = "train.jsonl"', "")) == (
        "data.train: required and not set; add it to the file or pass --set data.train=..."
    )
    assert refusal(load, text=MINIMAL.replace('[model]\npath = "models/base"', "")) == (
        "model: required section and not there; add [model] to the file."
    )
    assert load("data.train=x.jsonl", text=MINIMAL.replace('train = "train.jsonl"', "")).data.train == Path("x.jsonl")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=7", 7),
        ("run.steps = 7", 7),
        ("run.seed=1_000", 1000),
        ("optimizer.lr=1e-6", 1e-6),
        ("optimizer.lr=1", 1.0),
        ("reward.wrong=-0.5", -0.5),
        ("parallel.sequence=false", False),
        ("algorithm.divergence=reverse_kl", "reverse_kl"),
        ('algorithm.divergence="reverse_kl"', "reverse_kl"),
        ("data.problem_field=the question", "the question"),
        ("data.problem_field=a=b", "a=b"),
        ('data.problem_field="7"', "7"),
        ("model.path=/models/Qwen2.5 7B/#1", Path("/models/Qwen2.5 7B/#1")),
        ("model.path='x y'", Path("x y")),
        ("run.folder=runs/2026-01-31", Path("runs/2026-01-31")),
        ("run.folder=2026-01-31", Path("2026-01-31")),  # a date in TOML
        ("run.folder=12:30:00", Path("12:30:00")),
    ],
)
def test_overrides(load, override, expected):
    section, field = override.partition("=")[0].strip().split(".")
    found = getattr(getattr(load(override), section), field)
    assert found == expected and type(found) is type(expected)


def test_override_of_a_list(load):
    assert load(*EVALUATION, "evaluation.k=[1, 2, 8]").evaluation.k == (1, 2, 8)


TWO_FUNCTIONS = """
[[reward.functions]]
name = "brief"
function = "m:f"
range = [0.0, 1.0]
[[reward.functions]]
name = "polite"
function = "m:g"
range = [0.0, 1.0]
"""


def test_override_of_an_entry_of_a_list(load):
    text = MINIMAL + TWO_FUNCTIONS
    functions = load("reward.functions.1.range=[-1, 0.5]", "reward.functions.0.weight=3.0", text=text).reward.functions
    assert [each.range for each in functions] == [(0.0, 1.0), (-1.0, 0.5)]
    assert [each.weight for each in functions] == [3.0, 1.0]
    assert load("reward.functions.1.range.0=-2.0", text=text).reward.functions[1].range == (-2.0, 1.0)
    length = load(
        "reward.length.free_tokens=1", "reward.length.full_tokens=9", "reward.length.penalty=0.5"
    ).reward.length
    assert (length.free_tokens, length.full_tokens, length.penalty) == (1, 9, 0.5)


def test_what_a_message_advises_can_be_followed(load):
    text = MINIMAL + TWO_FUNCTIONS.replace("range = [0.0, 1.0]\n[[", "[[")
    assert refusal(load, text=text) == (
        "reward.functions.0.range: required and not set; add it to the file or pass --set reward.functions.0.range=..."
    )
    assert load("reward.functions.0.range=[0, 2]", text=text).reward.functions[0].range == (0.0, 2.0)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (
            "reward.functions.2.range=[0, 1]",
            "reward.functions has no entry 2, it has entries 0 to 1; count from 0, or set the whole list.",
        ),
        (
            "reward.functions.-1.range=[0, 1]",
            "reward.functions has no entry -1, it has entries 0 to 1; count from 0, or set the whole list.",
        ),
        (
            "reward.functions.first.range=[0, 1]",
            "reward.functions has no entry first, it has entries 0 to 1; count from 0, or set the whole list.",
        ),
        ("run.steps.0=3", "run.steps is 3, which has no 0; set run.steps itself."),
        ("run.seed.x=3", "run.seed is 0, which has no x; set run.seed itself."),
        ("run.steps.x=3", "run.steps is 3, which has no x; set run.steps itself."),
        ("run.0=3", "run is {'folder': 'runs/one', 'steps': 3, 'seed': 0}, which has no 0; set run itself."),
    ],
)
def test_an_entry_that_is_not_there(load, override, reason):
    assert refusal(load, "run.seed=0", override, text=MINIMAL + TWO_FUNCTIONS) == f"--set {override}: {reason}"


def test_an_index_of_5000_digits(load):
    message = refusal(load, f"reward.functions.{'7' * 5000}.weight=2.0", text=MINIMAL + TWO_FUNCTIONS)
    assert f": reward.functions has no entry {'7' * 80}... (5,000 characters), it has entries 0 to 1; " in message


def test_an_entry_of_a_list_that_is_not_there(load):
    for overrides in (["reward.functions=[]"], []):
        assert refusal(load, *overrides, "reward.functions.0.weight=1.0") == (
            "--set reward.functions.0.weight=1.0: reward.functions has no entry 0, it has no entries; count from 0, or "
            "set the whole list."
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.k=1,4", "evaluation.k='1,4': not a list; write evaluation.k=[1,4]."),
        ("evaluation.k=4", "evaluation.k=4: not a list; write evaluation.k=[4]."),
        (
            "monitor.writers=wandb, mlflow",
            """monitor.writers='wandb, mlflow': not a list; write {}["wandb", "mlflow"].""",
        ),
        ("monitor.writers=wandb", """monitor.writers='wandb': not a list; write {}["wandb"]."""),
    ],
)
def test_a_list_without_brackets(load, override, message):
    assert refusal(load, *EVALUATION, override) == message.format("monitor.writers=")


@pytest.mark.parametrize(
    ("text", "reason"), [("7" * 5000, "a number has too many digits"), ("[" * 5000, "it is nested too deeply")]
)
def test_values_that_no_parser_should_take(load, tmp_path, text, reason):
    assert refusal(load, f"run.seed={text}") == (
        f"--set run.seed={text[:71]}... (5,009 characters): {reason}; change the value."
    )
    message = refusal(load, text=MINIMAL.replace("steps = 3", f"steps = {text}"))
    assert message == f"{tmp_path / 'run.toml'}: not valid TOML ({reason}); mend that line."


def test_a_long_value_is_cut_in_the_message(load):
    message = refusal(load, f"run.seed={'7' * 4000}")
    assert message == (
        f"run.seed={'7' * 80}... (4,000 characters): input should be less than 4294967296; change the value."
    )


def test_the_last_override_counts(load):
    assert load("run.steps=7", "run.steps=9").run.steps == 9


@pytest.mark.parametrize("override", ["run.steps", "steps=3", ".steps=3", "run.=3", "=3", ""])
def test_overrides_of_another_form(load, override):
    assert refusal(load, override) == (
        f"--set {override}: not of the form section.field=value; write e.g. --set run.steps=10."
    )


def test_override_in_what_is_no_section(load):
    message = refusal(load, "run.steps=3", text="run = 3")
    assert message.startswith("--set run.steps=3: run is not a section; sections are model, data, ")


def test_no_file(tmp_path):
    path = tmp_path / "none.toml"
    assert refusal(load_config, path) == f"{path}: no such configuration file; check the path."


def test_a_folder(tmp_path):
    assert refusal(load_config, tmp_path) == f"{tmp_path}: cannot be read (Is a directory); give a TOML file."


@pytest.mark.parametrize(
    ("text", "line"), [("[run\nsteps = 3", 1), ("[run]\nsteps = \n", 2), (MINIMAL + "\n[run]\nsteps = 4\n", 18)]
)
def test_broken_toml_with_its_line(load, tmp_path, text, line):
    message = refusal(load, text=text)
    assert message.startswith(f"{tmp_path / 'run.toml'}: not valid TOML (")
    assert f"at line {line}, " in message and message.endswith("; mend that line.")


def test_not_text(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(load_config, path).startswith(f"{path}: not valid TOML (")


def write(folder, **files):
    """TOML files by their stems; folders may be in them (`a__b` is a/b.toml)."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_file_changes_its_base(tmp_path):
    """Section by section and setting by setting, along a chain, each base relative to the file that names it."""
    write(
        tmp_path,
        sub__run='base = "../middle.toml"\n[run]\nsteps = 5\n[optimizer]\nlr = 1e-4',
        middle='base = "deep/root.toml"\n[run]\nsteps = 4\nseed = 9\n[algorithm]\nbeta = 0.5',
        deep__root=MINIMAL + "[algorithm]\nalpha = 0.25\nbeta = 0.25",
    )
    config = load_config(tmp_path / "sub" / "run.toml", ["run.seed=7"])
    assert (config.run.steps, config.run.seed, config.run.folder) == (5, 7, Path("runs/one"))  # --set is the last word
    assert (config.algorithm.alpha, config.algorithm.beta) == (0.25, 0.5)
    assert config.optimizer.lr == 1e-4 and config.model.path == Path("models/base")  # not relative to the file


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run": 'base = "run.toml"'}, "{folder}/run.toml: base leads back to it; base it on another file."),
        (
            {"run": 'base = "one.toml"', "one": 'base = "sub/two.toml"', "sub__two": 'base = "../one.toml"'},
            "{folder}/sub/../one.toml: base leads back to it; base it on another file.",
        ),
        (
            {"run": 'base = "sub/one.toml"', "sub__one": 'base = "two.toml"'},
            "{folder}/sub/two.toml: no such configuration file (base of {folder}/sub/one.toml); check the path.",
        ),
        (
            {"run": 'base = "a\\u0000b"'},
            "{folder}/run.toml: base='a\\x00b': not the name of a file; write base = \"other.toml\".",
        ),
        ({"run": "base = 3"}, '{folder}/run.toml: base=3: not the name of a file; write base = "other.toml".'),
        (
            {"run": 'base = ["one.toml"]'},
            "{folder}/run.toml: base=['one.toml']: not the name of a file; write base = \"other.toml\".",
        ),
        (
            {"run": 'base = "one.toml"\n[run]\nsteps = 0', "one": MINIMAL},
            "run.steps=0: input should be greater than or equal to 1; change the value.",
        ),
        (
            {"run": 'base = "one.toml"', "one": 'base = "run"'},
            "{folder}/run: no such configuration file (base of {folder}/one.toml); check the path.",
        ),
    ],
)
def test_bases_that_cannot_be(tmp_path, files, message):
    write(tmp_path, **files)
    assert refusal(load_config, tmp_path / "run.toml") == message.format(folder=tmp_path)


def test_a_section_and_a_value_of_one_name_do_not_merge(tmp_path):
    """Whichever comes last stands, and is then judged."""
    write(tmp_path, run='base = "one.toml"\nreward = 3', one=MINIMAL + "[reward]\nwrong = -1.0")
    assert refusal(load_config, tmp_path / "run.toml").startswith("reward=3: ")
    write(tmp_path, run='base = "one.toml"\n[reward]\nwrong = -1.0', one="reward = 3\n" + MINIMAL)
    assert load_config(tmp_path / "run.toml").reward.wrong == -1.0


def test_base_is_no_setting(load):
    assert refusal(load, "base=x.toml") == (
        "--set base=x.toml: not of the form section.field=value; write e.g. --set run.steps=10."
    )


def test_quickstart():
    config = load_config(Path(__file__).parents[2] / "examples" / "quickstart.toml")
    assert config.model.path == Path("examples/tiny/model")
    assert config.algorithm.divergence == "forward_kl" and config.algorithm.phi_max == 1.0
    assert config.parallel.tensor == 2 and config.rollout.tensor == 1
    assert config.batch.completions_per_optimizer_step == 16 * 16
    assert config.evaluation.k == (1, 4, 16)
    check_world_size(config, 2)
