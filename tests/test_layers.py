"""Layers point down: which module may import what, read from the source with `ast`.

Imports count wherever they stand, inside functions and under TYPE_CHECKING too. A rule that is
followed through our own modules ("deep") includes the packages that Python imports on the way.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.patience import HANG_S

PACKAGE = "megatron_rapo"
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Modules in `inside` (but not in `outside`) do not import `forbidden` (but may `allowed`). All are prefixes."""

    inside: tuple[str, ...] = ("",)
    outside: tuple[str, ...] = ()
    forbidden: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    deep: bool = False

    def applies_to(self, module: str) -> bool:
        return _within(module, _ours(self.inside)) and not _within(module, _ours(self.outside))

    def forbids(self, target: str) -> bool:
        return _within(target, self.forbidden) and not _within(target, self.allowed)


RULES = {
    "only mcore/ imports megatron": Rule(outside=("mcore",), forbidden=("megatron",)),
    "only rollout/ imports vllm": Rule(outside=("rollout",), forbidden=("vllm",)),
    "settings, types and monitor/ need no torch": Rule(
        inside=("config", "runtime.rank", "errors", "types", "monitor"), forbidden=("torch",), deep=True
    ),
    "report/ needs no framework": Rule(
        inside=("report",), forbidden=("torch", "transformers", "megatron", "vllm"), deep=True
    ),
    "rewards/ and verifier/ need neither torch nor transformers": Rule(
        inside=("rewards", "verifier"), forbidden=("torch", "transformers"), deep=True
    ),
    "the parameter map needs neither framework": Rule(
        inside=("models", "reshard.plan"), forbidden=("megatron", "vllm"), deep=True
    ),
    "mcore/ does not know rollout/": Rule(inside=("mcore",), forbidden=(f"{PACKAGE}.rollout", "vllm"), deep=True),
    "rollout/ does not know mcore/": Rule(inside=("rollout",), forbidden=(f"{PACKAGE}.mcore", "megatron"), deep=True),
    "scoring/ needs neither framework": Rule(inside=("scoring",), forbidden=("megatron", "vllm"), deep=True),
    "algo/ is pure": Rule(
        inside=("algo",),
        forbidden=(PACKAGE, "torch.distributed"),
        allowed=(f"{PACKAGE}.algo", f"{PACKAGE}.builtin_names"),
    ),
    "only run imports trainer": Rule(outside=("run",), forbidden=(f"{PACKAGE}.training.trainer",)),
}


FLOORS = (
    ("errors", "types", "builtin_names", "fp8_recipes", "algo"),
    ("config",),
    ("runtime", "scoring", "verifier"),
    ("models", "monitor", "data", "rewards"),
    ("audit", "checkpoints", "reshard", "rollout", "profiling"),
    ("convert", "preflight"),
    ("evaluation", "mcore"),
    ("training", "report"),
    ("run",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Packages and loose modules from the ground up: each imports from its own package and from lower floors only. On one
floor a later one may import from an earlier one."""
MAX_LINES = 450


@dataclass(frozen=True, kw_only=True)
class Module:
    name: str
    path: Path
    imports: dict[str, int] = field(default_factory=dict)  # target -> its first line


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the package under `root`, by name."""
    paths = {_module_name(path.relative_to(root)): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    modules = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(), filename=str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imports: dict[str, int] = {}
        for target, line in _imports(tree, package, set(paths)):
            imports.setdefault(target, line)
        modules[name] = Module(name=name, path=path.relative_to(root), imports=imports)
    return modules


def violations(modules: dict[str, Module], rule: Rule) -> Iterator[str]:
    """Each as `file:line: what`; where the rule is deep, with the chain that leads there."""
    for module in modules.values():
        if not rule.applies_to(module.name):
            continue
        for target, line in module.imports.items():
            chain = _chain_to_forbidden(modules, target, rule)
            if chain:
                yield f"{module.path}:{line}: imports {' -> '.join(chain)}"


def _chain_to_forbidden(modules: dict[str, Module], target: str, rule: Rule) -> list[str]:
    """The shortest way from the import of `target` to something forbidden; empty where there is none."""
    queue, seen = [[target]], {target}
    while queue:
        chain = queue.pop(0)
        if rule.forbids(chain[-1]):
            return chain
        if not rule.deep:
            continue
        for name in _executed_by_import(chain[-1]):
            for following in modules[name].imports if name in modules else ():
                if following not in seen:
                    seen.add(following)
                    queue.append([*chain, following])
    return []


def _executed_by_import(name: str) -> list[str]:
    """`a.b.c` runs a/__init__.py and a/b/__init__.py too."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _imports(tree: ast.Module, package: str, known: set[str]) -> Iterator[tuple[str, int]]:
    bound: dict[str, str] = {}  # local name -> module, for uses like torch.distributed after `import torch`
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
                top = alias.name.partition(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if base != PACKAGE or full not in known:  # `from megatron_rapo import config` imports the module
                    yield base, node.lineno
                yield full, node.lineno
                bound[alias.asname or alias.name] = full
        elif isinstance(node, ast.Call) and _is_import_call(node):
            yield ast.literal_eval(node.args[0]), node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            yield f"{bound[node.value.id]}.{node.attr}", node.lineno


def _is_import_call(node: ast.Call) -> bool:
    """`importlib.import_module("vllm")` and the like."""
    function = ast.unparse(node.func).rpartition(".")[2]
    return function in ("import_module", "__import__") and bool(node.args) and isinstance(node.args[0], ast.Constant)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _ours(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{PACKAGE}.{prefix}".rstrip(".") for prefix in prefixes)


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("name", RULES)
def test_the_package_keeps_the_rule(name: str) -> None:
    found = list(violations(read_modules(ROOT), RULES[name]))
    assert not found, f"{name}:\n" + "\n".join(found)


def upward(modules: dict[str, Module]) -> Iterator[str]:
    """Imports from a package on the same or a higher floor, as `file:line: what`."""
    order = [name for floor in FLOORS for name in floor]
    for module in modules.values():
        for target, line in module.imports.items():
            here, there = _room(module.name), _room(target)
            if target in modules and here and there and here != there and order.index(there) > order.index(here):
                yield f"{module.path}:{line}: imports {target}"


def _room(name: str) -> str:
    """The package or loose module that a module belongs to; empty for the whole package itself."""
    return name.split(".")[1] if "." in name else ""


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Modules that import each other in a circle. A package's face, its __init__.py, only hands names on."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for module in modules.values():
        if module.path.name != "__init__.py":
            sorter.add(module.name, *(target for target in module.imports if target in modules))
    try:
        sorter.prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_imports_point_down() -> None:
    assert sorted(name for floor in FLOORS for name in floor) == sorted(
        {_room(name) for name in read_modules(ROOT)} - {""}
    )
    assert list(upward(read_modules(ROOT))) == []


def test_no_modules_import_each_other() -> None:
    assert circles(read_modules(ROOT)) == []


def test_no_module_is_long() -> None:
    long = {
        str(module.path): len((ROOT / module.path).read_text().splitlines()) for module in read_modules(ROOT).values()
    }
    assert {path: lines for path, lines in long.items() if lines > MAX_LINES} == {}


def test_the_checker_catches_an_import_upward_and_a_circle(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "config.py": "from megatron_rapo.data import rows\n",
        "data/rows.py": "from megatron_rapo.data import text\n",
        "data/text.py": "def f():\n    import megatron_rapo.data.rows\n",
    }
    for path, source in files.items():
        (tmp_path / PACKAGE / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / path).write_text(source)
    modules = read_modules(tmp_path)
    assert list(upward(modules)) == ["megatron_rapo/config.py:1: imports megatron_rapo.data.rows"]
    assert [sorted(set(circle)) for circle in circles(modules)] == [
        ["megatron_rapo.data.rows", "megatron_rapo.data.text"]
    ]


SINS = {
    "only mcore/ imports megatron": (
        {"training/trainer.py": "import os\n\ndef f():\n    from megatron.core import tensor_parallel\n"},
        "megatron_rapo/training/trainer.py:4: imports megatron.core",
    ),
    "only rollout/ imports vllm": (
        {"mcore/a.py": "import importlib\nvllm = importlib.import_module('vllm')\n"},
        "megatron_rapo/mcore/a.py:2: imports vllm",
    ),
    "settings, types and monitor/ need no torch": (
        {"config.py": "from megatron_rapo import units\n", "units.py": "import torch\n"},
        "megatron_rapo/config.py:1: imports megatron_rapo.units -> torch",
    ),
    "report/ needs no framework": (
        {"report/page.py": "from megatron_rapo import metrics\n", "metrics.py": "import torch\n"},
        "megatron_rapo/report/page.py:1: imports megatron_rapo.metrics -> torch",
    ),
    "rewards/ and verifier/ need neither torch nor transformers": (
        {
            "verifier/pool.py": "from ..data.text import clean\n",
            "data/__init__.py": "import transformers\n",
            "data/text.py": "",
        },
        "megatron_rapo/verifier/pool.py:1: imports megatron_rapo.data.text -> transformers",
    ),
    "the parameter map needs neither framework": (
        {
            "models/parameter_map.py": "from ..reshard.plan import x\n",
            "reshard/plan.py": "from megatron_rapo.mcore.a import b\n",
            "mcore/a.py": "import megatron.core\n",
        },
        "megatron_rapo/models/parameter_map.py:1: imports "
        "megatron_rapo.reshard.plan -> megatron_rapo.mcore.a -> megatron.core",
    ),
    "mcore/ does not know rollout/": (
        {"mcore/a.py": "if True:\n    import megatron_rapo.rollout.engine\n", "rollout/engine.py": ""},
        "megatron_rapo/mcore/a.py:2: imports megatron_rapo.rollout.engine",
    ),
    "rollout/ does not know mcore/": (
        {"rollout/engine.py": "from ..mcore import groups\n", "mcore/groups.py": ""},
        "megatron_rapo/rollout/engine.py:1: imports megatron_rapo.mcore",
    ),
    "scoring/ needs neither framework": (
        {
            "scoring/objective.py": "def f():\n    from megatron_rapo.sums import f\n",
            "sums.py": "import megatron.core\n",
        },
        "megatron_rapo/scoring/objective.py:2: imports megatron_rapo.sums -> megatron.core",
    ),
    "algo/ is pure": (
        {"algo/loss.py": "import torch\n\ndef f(x):\n    torch.distributed.all_reduce(x)\n"},
        "megatron_rapo/algo/loss.py:4: imports torch.distributed",
    ),
    "only run imports trainer": (
        {
            "commands/evaluate.py": "from megatron_rapo.training.trainer import Trainer\n",
            "run.py": "from megatron_rapo.training import trainer\n",
        },
        "megatron_rapo/commands/evaluate.py:1: imports megatron_rapo.training.trainer",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_the_checker_catches_a_violation(name: str, tmp_path: Path) -> None:
    files, expected = SINS[name]
    for path, source in {"__init__.py": "", **files}.items():
        (tmp_path / PACKAGE / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / path).write_text(source)
    found = list(violations(read_modules(tmp_path), RULES[name]))
    assert expected in found, found
    assert {line.partition(": ")[0] for line in found} >= {expected.partition(": ")[0]}


def test_the_checker_lets_lawful_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "run.py": "from megatron_rapo.training.trainer import Trainer\n",
        "training/trainer.py": "import torch\nfrom megatron_rapo.mcore import a\nfrom megatron_rapo.rollout import b\n",
        "mcore/a.py": "import megatron.core\nfrom megatron_rapo.models import parameter_map\n",
        "rollout/b.py": "import vllm\nimport torch.distributed\n",
        "models/parameter_map.py": "import torch\n",
        "algo/loss.py": "import torch\nfrom megatron_rapo.algo.advantages import f\nfrom . import advantages\n",
        "algo/advantages.py": "",
        "config.py": "import pydantic\n",
    }
    for path, source in files.items():
        (tmp_path / PACKAGE / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / path).write_text(source)
    modules = read_modules(tmp_path)
    assert [line for rule in RULES.values() for line in violations(modules, rule)] == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        *((module, "torch") for module in ("config", "types", "monitor", "commands.report", "rewards", "verifier")),
        ("verifier", "transformers"),
    ],
)
def test_importing_loads_no_framework(module: str, unwanted: str) -> None:
    script = (
        f"import sys, {PACKAGE}.{module}; print(sorted(m for m in sys.modules if m.split('.')[0] == {unwanted!r})[:3])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
