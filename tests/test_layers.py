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
        inside=("config", "launcher", "errors", "types", "monitor"), forbidden=("torch",), deep=True
    ),
    "report/ needs no framework": Rule(
        inside=("report",), forbidden=("torch", "transformers", "megatron", "vllm"), deep=True
    ),
    "rewards/ needs neither torch nor transformers": Rule(
        inside=("rewards",), forbidden=("torch", "transformers"), deep=True
    ),
    "the parameter map needs neither framework": Rule(
        inside=("reshard.layout", "reshard.plan"), forbidden=("megatron", "vllm"), deep=True
    ),
    "mcore/ does not know rollout/": Rule(inside=("mcore",), forbidden=(f"{PACKAGE}.rollout", "vllm"), deep=True),
    "rollout/ does not know mcore/": Rule(inside=("rollout",), forbidden=(f"{PACKAGE}.mcore", "megatron"), deep=True),
    "the output head needs neither framework": Rule(
        inside=("output_head",), forbidden=("megatron", "vllm", f"{PACKAGE}.mcore", f"{PACKAGE}.rollout"), deep=True
    ),
    "the objective knows neither mcore/ nor rollout/": Rule(
        inside=("objective",), forbidden=(f"{PACKAGE}.mcore", f"{PACKAGE}.rollout", "megatron", "vllm"), deep=True
    ),
    "algo/ is pure": Rule(inside=("algo",), forbidden=(PACKAGE, "torch.distributed"), allowed=(f"{PACKAGE}.algo",)),
    "only run imports trainer": Rule(outside=("run",), forbidden=(f"{PACKAGE}.trainer",)),
}


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


SINS = {
    "only mcore/ imports megatron": (
        {"trainer.py": "import os\n\ndef f():\n    from megatron.core import tensor_parallel\n"},
        "megatron_rapo/trainer.py:4: imports megatron.core",
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
        {"report/command.py": "from megatron_rapo import metrics\n", "metrics.py": "import torch\n"},
        "megatron_rapo/report/command.py:1: imports megatron_rapo.metrics -> torch",
    ),
    "rewards/ needs neither torch nor transformers": (
        {
            "rewards/pool.py": "from ..data.text import clean\n",
            "data/__init__.py": "import transformers\n",
            "data/text.py": "",
        },
        "megatron_rapo/rewards/pool.py:1: imports megatron_rapo.data.text -> transformers",
    ),
    "the parameter map needs neither framework": (
        {
            "reshard/layout.py": "from .plan import x\n",
            "reshard/plan.py": "from megatron_rapo.mcore.a import b\n",
            "mcore/a.py": "import megatron.core\n",
        },
        "megatron_rapo/reshard/layout.py:1: imports "
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
    "the output head needs neither framework": (
        {"output_head.py": "from megatron_rapo.sums import f\n", "sums.py": "import megatron.core\n"},
        "megatron_rapo/output_head.py:1: imports megatron_rapo.sums -> megatron.core",
    ),
    "the objective knows neither mcore/ nor rollout/": (
        {
            "objective.py": "def f():\n    from megatron_rapo.packing import pack\n",
            "packing.py": "from megatron_rapo.mcore.step import total\n",
            "mcore/step.py": "",
        },
        "megatron_rapo/objective.py:2: imports megatron_rapo.packing -> megatron_rapo.mcore.step",
    ),
    "algo/ is pure": (
        {"algo/loss.py": "import torch\n\ndef f(x):\n    torch.distributed.all_reduce(x)\n"},
        "megatron_rapo/algo/loss.py:4: imports torch.distributed",
    ),
    "only run imports trainer": (
        {"evaluate.py": "from megatron_rapo.trainer import Trainer\n", "run.py": "from megatron_rapo import trainer\n"},
        "megatron_rapo/evaluate.py:1: imports megatron_rapo.trainer",
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
        "run.py": "from megatron_rapo.trainer import Trainer\n",
        "trainer.py": "import torch\nfrom megatron_rapo.mcore import a\nfrom megatron_rapo.rollout import b\n",
        "mcore/a.py": "import megatron.core\nfrom megatron_rapo.reshard import layout\n",
        "rollout/b.py": "import vllm\nimport torch.distributed\n",
        "reshard/layout.py": "import torch\n",
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
        *((module, "torch") for module in ("config", "types", "monitor", "report.command", "rewards")),
        ("rewards", "transformers"),
    ],
)
def test_importing_loads_no_framework(module: str, unwanted: str) -> None:
    script = (
        f"import sys, {PACKAGE}.{module}; print(sorted(m for m in sys.modules if m.split('.')[0] == {unwanted!r})[:3])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
