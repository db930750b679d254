"""The runs of one command: one alone, or several below a parent run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import CnnJobsError
from cnn_jobs.job import run_task
from cnn_jobs.run import JobOptions, RunResult, Watcher
from cnn_jobs.series import Planned, new_group, run_all
from cnn_jobs.stop import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.tracking.mlflow_recorder import MlflowRecorder
from cnn_jobs.tracking.records import RunRequest


def run_series(
    task: Task,
    planned: Sequence[Planned],
    options: JobOptions,
    dataset: Dataset,
    watcher: Watcher,
    stop: StopRequest,
    report_error: Callable[[str], None],
) -> tuple[list[RunResult], list[CnnJobsError]]:
    """Runs what is planned; returns what finished and what did not. Several get a parent run that holds them.

    ``report_error`` takes a line for each of several runs that fails, when it does.
    The parent trains nothing: its tag ``cnn_jobs.role`` is ``parent``, and it is FINISHED when all its runs are.
    """

    def run_one(item: Planned) -> RunResult:
        return _one(task, item, options, dataset, watcher, stop)

    if len(planned) == 1:
        # Its error is the command's own, told by whoever called.
        return run_all(planned, run_one, lambda line: None)
    group = new_group()
    name = options.run_name or f"{task.name}-{len(planned)}-runs"
    parent = MlflowRecorder(
        options.tracking_uri, RunRequest(options.experiment, name, _parent_tags(task, planned, group))
    )
    with stop.deferred():
        parent.start()
    try:
        options = replace(options, parent_run_id=parent.run_id, group=group)
        results, errors = run_all(planned, run_one, report_error)
    except BaseException as error:
        _finish_parent(parent, f"{type(error).__name__}: {error}", options, stop)
        raise
    try:
        _finish_parent(parent, "; ".join(map(str, errors)), options, stop)
    except CnnJobsError as error:
        errors.append(error)
    return results, errors


def _finish_parent(parent: MlflowRecorder, reason: str, options: JobOptions, stop: StopRequest) -> None:
    """FINISHED without a reason; KILLED after a signal, else FAILED."""
    status, state = ("KILLED", "interrupted") if stop.requested() else ("FAILED", "failed")
    if not reason:
        status, state = "FINISHED", "finished"
    with stop.deferred():
        parent.tags({"cnn_jobs.state": state, "cnn_jobs.reason": reason[:1000]})
        parent.finish(status, options.ship_deadline_s)


def _one(
    task: Task, item: Planned, options: JobOptions, dataset: Dataset, watcher: Watcher, stop: StopRequest
) -> RunResult:
    if item.label:
        options = replace(options, run_name=f"{options.run_name or task.name}-{item.label}")
    return run_task(task, item.recipe, options, dataset, watcher, stop)


def _parent_tags(task: Task, planned: Sequence[Planned], group: str) -> dict[str, str]:
    runs = "\n".join(f"- {item.label}" for item in planned)
    return {
        "cnn_jobs.role": "parent",
        "cnn_jobs.task": task.name,
        "cnn_jobs.group": group,
        "cnn_jobs.state": "running",
        "mlflow.source.name": "cnn-jobs",
        "mlflow.note.content": f"**{task.name}** - {task.title}\n\n{len(planned)} runs:\n\n{runs}\n",
    }
