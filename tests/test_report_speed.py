"""The report's benchmark: MLflow's own API reads what it inserted, and its page is rendered from its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report_speed
from benchmarks.report_runs import EXPERIMENT, VALIDATIONS, history, make_store
from cnn_jobs.report.groups import group_runs
from cnn_jobs.tracking.run_reader import RunReader
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(MLFLOW_WARNING)]


def test_mlflow_reads_the_inserted_runs(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    make_store(tmp_path, runs=8, points=60)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 8
    for run in runs:
        rows = list(history(int(run.info.run_id, 16), 60))
        for key in ("train/loss", "val/loss", "val/accuracy"):
            points = client.get_metric_history(run.info.run_id, key)
            assert [(p.key, p.step, p.value) for p in points] == [row for row in rows if row[0] == key]
            assert run.data.metrics[key] == points[-1].value
    reader = RunReader(uri)
    completed = reader.complete(reader.experiment(EXPERIMENT).runs, lambda: None)
    assert not [run.lacking for run in completed if run.lacking]
    sections, aside = group_runs(completed)
    assert ([len(group.runs) for group in sections[0].groups], aside) == ([2, 1, 1, 1, 1, 1, 1], [])
    assert len(completed[0].val_loss.steps) == VALIDATIONS


def test_page_is_rendered_from_the_measurements() -> None:
    rendered = report_speed.render(json.loads(report_speed.JSON_FILE.read_text()))
    assert rendered in report_speed.PAGE.read_text()
