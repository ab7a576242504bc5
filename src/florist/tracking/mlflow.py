"""MLflow: a run in an experiment, at a server or in a folder."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florist.tracking.tracker import Place, TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FOLDER = "mlruns"
_BATCH = 900
"""MLflow takes at most 1000 metrics, and 100 parameters, at once."""
_PARAMETERS = 90
_LONGEST = 500
"""The longest value of a parameter that every version of MLflow takes."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""By default MLflow tries for minutes to reach a server that is away; what the environment says counts more."""


class Mlflow:
    """A run in MLflow."""

    def __init__(self, client: "MlflowClient", place: Place) -> None:
        self._client = client
        self._place = place

    @classmethod
    def open(cls, run: TrackedRun, place: Place) -> "Mlflow":
        """Begin a run, or go on with the one at `place`.

        Parameters are written once: MLflow lets none of them change.
        """
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.entities import Param, RunTag  # noqa: PLC0415

        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        uri = place.get("uri") or run.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or _FOLDER
        if not re.match(r"[\w+-]+:|databricks$", uri):
            uri = str(Path(uri).resolve())
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 wants to be told so
        client = MlflowClient(tracking_uri=uri)
        if place:
            client.update_run(place["run"], status="RUNNING")
            return cls(client, place)
        experiment = client.get_experiment_by_name(run.project)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(run.project)
        run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
        found = [Param(key, str(value)[:_LONGEST]) for key, value in run.hyperparameters.items()]
        for start in range(0, len(found), _PARAMETERS):
            client.log_batch(run_id, params=found[start : start + _PARAMETERS])
        client.log_batch(run_id, tags=[RunTag("florist.run", str(run.path.resolve()))])
        return cls(client, {"uri": uri, "run": run_id})

    @property
    def place(self) -> Place:
        """Where the run is, and its id."""
        return self._place

    def last_step(self) -> int | None:
        """What the metric ``round/number`` says, which is the last one of each step to be written."""
        number = self._client.get_run(self._place["run"]).data.metrics.get("round/number")
        return int(number) if number is not None else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a metric for each value."""
        self._write(step, {**values, "round/number": step})

    def summarise(self, step: int, values: Mapping[str, float]) -> None:
        """Write a metric for each value."""
        self._write(step, values)

    def close(self, *, finished: bool) -> None:
        """Say how the run ended: ``FINISHED``, or ``KILLED`` where it can go on."""
        self._client.set_terminated(self._place["run"], "FINISHED" if finished else "KILLED")

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        metrics: list[Any] = [Metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._place["run"], metrics=metrics[start : start + _BATCH])
