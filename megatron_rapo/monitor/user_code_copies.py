"""Keep the source of the user's own code with the run: RUN/user_code/step-000001/SETTING.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_rapo.config import Config
from megatron_rapo.runtime.run_folder import RunFolder, step_name
from megatron_rapo.runtime.user_code import source_of


def record_user_code(folder: Path, config: Config, *, step: int, warn: Callable[[str], None]) -> None:
    """Copy the user's source files that a run uses after `step`. Call `warn` if one differs from the last copy.

    Removes copies of later steps.
    """
    sources = RunFolder(folder).user_code
    present = sources / step_name(step + 1)
    for later in sources.glob("step-*"):
        if later.name > present.name:
            shutil.rmtree(later)
    for setting, reference in config.user_code.items():
        source = source_of(reference)
        if source is None:
            continue
        content = source.read_bytes()
        kept = sorted(sources.glob(f"step-*/{setting}.py"))
        if kept and kept[-1].read_bytes() == content:
            continue
        if kept:
            warn(f"WARNING: {setting}={reference}: {source} differs from what the run used before, {kept[-1]}")
        present.mkdir(parents=True, exist_ok=True)
        (present / f"{setting}.py").write_bytes(content)
