"""Every configuration of examples/ for the tiny model fits a small machine, and Megatron builds what is counted.

Those of examples/simplerl/ are judged with their job scripts, tests/slurm/test_scripts.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_rapo.config.file import load_config
from megatron_rapo.mcore.dry_run import dry_run
from megatron_rapo.models import read_shape
from megatron_rapo.preflight.fit import Machine, fits, needed
from megatron_rapo.preflight.memory import parameters
from megatron_rapo.preflight.seconds import HARDWARE

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGURATIONS = [path for path in sorted(EXAMPLES.rglob("*.toml")) if path.parent.name != "simplerl"]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_it_fits(path: Path) -> None:
    config, model = load_config(path), read_shape(EXAMPLES / "tiny/model")
    world = config.parallel.model_size
    machine = Machine(
        gpus=world, memory_bytes=8 * 2**30, overhead_bytes=2**30, hardware=HARDWARE["h100"], layers="torch"
    )
    assert fits(needed(model, config, machine), machine)
    assert [each.numel for each in dry_run(config, model, world=world)] == parameters(model, config)
