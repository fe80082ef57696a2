"""Write to Weights & Biases. Its own variables (WANDB_PROJECT, WANDB_MODE=offline, ...) apply."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from megatron_rapo.monitor.writer_interface import Histograms, Sample, Scalars, kept_id
from megatron_rapo.runtime.run_folder import RunFolder


class WandbWriter:
    """Writes one run at Weights & Biases. A resumed run continues it, and repeated steps appear twice."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "megatron_rapo"),
            name=os.environ.get("WANDB_NAME", folder.resolve().name),
            id=kept_id(RunFolder(folder).wandb_run_id, uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )
        # Its own step counter cannot go back, but a run resumed from an earlier checkpoint does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Scalars, samples: Sequence[Sample], histograms: Histograms) -> None:
        content: dict[str, Any] = {"step": step, **scalars}
        content |= {
            name: wandb.Histogram(np_histogram=np.histogram(values, bins=30))
            for name, values in histograms.items()
            if len(values)
        }
        if samples:
            rows = [[step, each.prompt, each.completion, each.answer, each.reward] for each in samples]
            content["samples"] = wandb.Table(["step", "prompt", "completion", "answer", "reward"], rows)
        self._run.log(content)

    def close(self) -> None:
        self._run.finish()
