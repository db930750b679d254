"""Runs that trained something, read back from MLflow."""

from __future__ import annotations

from cnn_jobs.reporting.rows import TrainingRun
from cnn_jobs.tracking.report_source import ReportSource


def runs_of(uri: str, experiment: str, task: str = "") -> list[TrainingRun]:
    """Runs of an experiment that trained something, oldest first; parents of a series and documents are left out.

    Raises ``UserError`` for an unknown experiment, ``TrackingError`` where MLflow does not answer.
    """
    runs = ReportSource(uri, tries=1).experiment(experiment).runs
    return [run for run in runs if run.task and run.task == (task or run.task)]
