"""The runs of one command: one alone, or several below a parent run."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cnn_jobs import endings
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import CnnJobsError, InterruptedRunError
from cnn_jobs.job import CONTACT_S, FAILURE_DEADLINE_S, run_task
from cnn_jobs.run import JobOptions, RunResult, Watcher
from cnn_jobs.series import Planned, run_all
from cnn_jobs.stop import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.tracking.plain_run import PlainRun
from cnn_jobs.tracking.recorder import LAST_WORDS_S
from cnn_jobs.tracking.records import Ending, RunHeader, now_ms

NOTE = "mlflow.note.content"


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
    The parent trains nothing: its tag ``cnn_jobs.role`` is ``parent``, and it is FINISHED when all its runs are. The
    runs' keys are the parent's and their labels, so that the same key goes on with the whole series.
    """
    if len(planned) == 1:
        # Its error is the command's own, told by whoever called.
        return run_all(planned, lambda item: _one(task, item, options, dataset, watcher, stop), lambda line: None)
    key = options.run_key or uuid.uuid4().hex[:16]
    name = options.run_name or f"{task.name}-{len(planned)}-runs"
    header = RunHeader(options.experiment, key, name, now_ms(), _parent_tags(task, planned, key))
    with stop.deferred():
        folder, any_before = options.state_dir / key, options.key_from_job
        parent = PlainRun(folder, options.tracking_uri, header, replaces_any=any_before, reopens=True)
    try:
        with stop.deferred():
            parent.recorder.start(CONTACT_S, stop.requested)
            # The same key may be called again with more runs than before.
            parent.recorder.tags({NOTE: header.tags[NOTE]})
        own = replace(options, parent_key=key, group=options.group or key)
        results, errors = run_all(
            planned, lambda item: _one(task, item, own, dataset, watcher, stop, key), report_error
        )
        _finish_parent(parent, errors, options, stop)
    except BaseException as error:
        _finish_parent(parent, [error], options, stop)
        raise
    finally:
        parent.close()
    for each in errors:
        if isinstance(each, InterruptedRunError):  # to go on is to go on with the series
            each.run_key = key
    return results, errors


def _finish_parent(parent: PlainRun, errors: list[Any], options: JobOptions, stop: StopRequest) -> None:
    """FINISHED where nothing failed, KILLED after a signal, else FAILED; an error of its own joins the others."""
    ending: Ending | None = endings.finished()
    deadline = options.ship_deadline_s
    if errors:
        whole = errors[-1] if stop.signal_name or len(errors) == 1 else CnnJobsError("; ".join(map(str, errors)))
        ending = endings.ending_of(whole)
        deadline = LAST_WORDS_S if stop.signal_name else min(deadline, FAILURE_DEADLINE_S)
    if ending is None:
        parent.recorder.abandon()
        return
    try:
        with stop.deferred():
            parent.recorder.finish(ending, deadline, stop.requested)
    except CnnJobsError as error:
        errors.append(error)


def _one(
    task: Task,
    item: Planned,
    options: JobOptions,
    dataset: Dataset,
    watcher: Watcher,
    stop: StopRequest,
    series_key: str = "",
) -> RunResult:
    if item.label:
        key = f"{series_key}-{re.sub(r'[^A-Za-z0-9._-]', '_', item.label)}"
        options = replace(options, run_name=f"{options.run_name or task.name}-{item.label}", run_key=key)
    return run_task(task, item.recipe, options, dataset, watcher, stop)


def _parent_tags(task: Task, planned: Sequence[Planned], key: str) -> dict[str, str]:
    runs = "\n".join(f"- {item.label}" for item in planned)
    return {
        "cnn_jobs.role": "parent",
        "cnn_jobs.task": task.name,
        "cnn_jobs.group": key,
        "mlflow.source.name": "cnn-jobs",
        NOTE: f"**{task.name}** - {task.title}\n\n{len(planned)} runs:\n\n{runs}\n",
    }
