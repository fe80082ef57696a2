"""Write to MLflow: to the server of MLFLOW_TRACKING_URI, or else to a database in the run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from megatron_rapo.monitor.writer_interface import Histograms, Sample, Scalars, kept_id
from megatron_rapo.runtime.run_folder import RunFolder, step_name

_PARAM_CHARACTERS, _PARAMS_AT_ONCE = 500, 100  # limits that all of MLflow's stores accept


class MlflowWriter:
    """Writes one MLflow run. A resumed run continues it, and repeated steps appear twice.

    Samples become files (artifacts) of the run. MLflow has no histograms, so they are left out.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        files = RunFolder(folder.resolve())
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(server or f"sqlite:///{files.mlflow_database}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "megatron_rapo")
        experiment = self._client.get_experiment_by_name(name)
        artifacts = None if server else files.mlflow_files.as_uri()  # the default would be the current folder
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
        known = files.mlflow_run_id
        if known.exists():
            self._run_id = kept_id(known, "")
            self._client.update_run(self._run_id, status="RUNNING")
            return
        self._run_id = kept_id(known, self._client.create_run(experiment_id, run_name=files.path.name).info.run_id)
        params = [Param(name, str(value)[:_PARAM_CHARACTERS]) for name, value in _flat(settings)]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_AT_ONCE])

    def write(self, step: int, scalars: Scalars, samples: Sequence[Sample], histograms: Histograms) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(name.replace("@", "_at_"), value, now_ms, step) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        for i, sample in enumerate(samples):
            self._client.log_text(self._run_id, sample.markdown(), f"samples/{step_name(step)}-{i}.md")

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each setting as (section.field, value)."""
    for section, fields in settings.items():
        if isinstance(fields, Mapping):
            yield from ((f"{section}.{name}", value) for name, value in fields.items())
        else:
            yield section, fields
