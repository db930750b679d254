"""The runs of one command: one alone, or several below a parent run."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.distributed.rendezvous import Peers
from cnn_jobs.errors import CONTINUE, CnnJobsError, InterruptedRunError, NotShippedError
from cnn_jobs.recipe import Planned, run_all
from cnn_jobs.runs.setup import RunOptions, RunResult
from cnn_jobs.runs.train import CONTACT_S, FAILURE_DEADLINE_S, train_run
from cnn_jobs.system.environment import look_up_budget_s
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.client import OutageError, TrackingClient
from cnn_jobs.tracking.document_run import PlainRun
from cnn_jobs.tracking.look_up import find_run
from cnn_jobs.tracking.ownership import check_role
from cnn_jobs.tracking.recorder import FLUSH_TIMEOUT_S
from cnn_jobs.tracking.records import Ending, RunHeader, now_ms
from cnn_jobs.training.observer import Watcher

NOTE, ROLE = names.NOTE, "parent"


def run_series(
    task: Task,
    planned: Sequence[Planned],
    options: RunOptions,
    dataset: Dataset,
    watcher: Watcher,
    stop: StopRequest,
    report_error: Callable[[str], None],
    peers: Peers | None = None,
) -> tuple[list[RunResult], list[CnnJobsError]]:
    """Runs what is planned; returns what finished and what did not. Several get a parent run that holds them.

    ``peers``, of one run alone: the other processes that train it. ``report_error`` takes a line for each of several
    runs that fails, when it does.
    The parent trains nothing: its tag ``cnn_jobs.role`` is ``parent``, and it is FINISHED when all its runs are. The
    runs' keys are the parent's and their labels, so that the same key goes on with the whole series.
    """
    if len(planned) == 1:
        # Its error is the command's own, told by whoever called.
        alone = partial(_one, task, options=options, dataset=dataset, watcher=watcher, stop=stop, peers=peers)
        return run_all(planned, alone, lambda line: None)
    key = options.run_key or uuid.uuid4().hex[:16]
    name = options.run_name or f"{task.name}-{len(planned)}-runs"
    header = RunHeader(options.experiment, key, name, now_ms(), _parent_tags(task, planned, key))
    own = replace(options, parent_key=key, group=options.group or key)

    def run_planned() -> tuple[list[RunResult], list[CnnJobsError]]:
        one = partial(_one, task, options=own, dataset=dataset, watcher=watcher, stop=stop, series_key=key)
        return run_all(planned, one, report_error, stop.check)

    if options.run_key and _is_finished(options, header):
        # Nothing is left to do, or a call with other options is refused: the parent stays as it is.
        results, errors = run_planned()
    else:
        results, errors = _below_parent(run_planned, options, header, stop)
    _go_on_with_the_series(results, errors, key)
    return results, errors


def _below_parent(
    run_planned: Callable[[], tuple[list[RunResult], list[CnnJobsError]]],
    options: RunOptions,
    header: RunHeader,
    stop: StopRequest,
) -> tuple[list[RunResult], list[CnnJobsError]]:
    with stop.deferred():
        folder, any_before = options.state_dir / header.run_key, options.key_from_job
        revives = options.resume == "must"
        parent = PlainRun(folder, options.tracking_uri, header, replaces_any=any_before, reopens=True, revives=revives)
    try:
        with stop.deferred():
            parent.recorder.start(CONTACT_S, stop.requested)
            # The same key may be called again with more runs than before.
            parent.recorder.tags({NOTE: header.tags[NOTE]})
        results, errors = run_planned()
        with stop.deferred():
            _finish_parent(parent, header.run_key, errors, options, stop)
    except BaseException as error:
        with stop.deferred():
            _finish_parent(parent, header.run_key, [error], options, stop)
        raise
    finally:
        parent.close()
    return results, errors


def _is_finished(options: RunOptions, header: RunHeader) -> bool:
    """Whether MLflow has the parent, FINISHED with the very runs that are planned.

    Raises ``CheckpointMismatchError`` where the key is that of something else.
    """
    try:
        found = find_run(TrackingClient(options.tracking_uri), header, look_up_budget_s())
    except OutageError:
        return False
    if found is None:
        return False
    check_role(header.run_key, found.tags, ROLE, f"run {found.run_id} in MLflow")
    return found.status == "FINISHED" and found.tags.get(NOTE) == header.tags[NOTE]


def _go_on_with_the_series(results: list[RunResult], errors: list[CnnJobsError], key: str) -> None:
    """After a signal, to go on is to go on with the series; with progress, if one of its runs had any."""
    for each in errors:
        if isinstance(each, InterruptedRunError):
            each.run_key = key
            if any(not result.note for result in results) or any(other.exit_code == CONTINUE for other in errors):
                each.exit_code = CONTINUE


def _finish_parent(parent: PlainRun, key: str, errors: list[Any], options: RunOptions, stop: StopRequest) -> None:
    """FINISHED where nothing failed, KILLED after a signal, else FAILED; an error of its own joins the others."""
    ending: Ending | None = run_status.finished()
    deadline = options.ship_deadline_s
    unsent = [error for error in errors if isinstance(error, NotShippedError)]
    if errors and len(unsent) == len(errors) and not stop.signal_name:
        # All is trained: the parent's end waits in its journal for that of its runs.
        parent.recorder.leave(run_status.finished())
        errors.append(_unsent(parent, key, options))
        return
    if errors:
        whole = errors[-1] if stop.signal_name or len(errors) == 1 else CnnJobsError("; ".join(map(str, errors)))
        ending = run_status.ending_of(whole)
        deadline = stop.seconds_left(FLUSH_TIMEOUT_S) if stop.signal_name else min(deadline, FAILURE_DEADLINE_S)
    if ending is None:
        parent.recorder.abandon()
        return
    try:
        delivered = parent.recorder.finish(ending, deadline, stop.requested)
        if not delivered and ending.status == "FINISHED":
            errors.append(_unsent(parent, key, options))
    except CnnJobsError as error:
        errors.append(error)


def _unsent(parent: PlainRun, key: str, options: RunOptions) -> NotShippedError:
    why = parent.recorder.outage or "its runs come first"
    error = NotShippedError(
        f"the series is complete, but MLflow lacks its end ({why}); it is in {options.state_dir / key}",
        kept=options.state_outlives_process,
    )
    error.run_key = key
    return error


def _one(
    task: Task,
    item: Planned,
    options: RunOptions,
    dataset: Dataset,
    watcher: Watcher,
    stop: StopRequest,
    series_key: str = "",
    peers: Peers | None = None,
) -> RunResult:
    if item.label:
        options = replace(options, run_name=f"{options.run_name or task.name}-{item.label}")
    if series_key:
        options = replace(options, run_key=f"{series_key}-{re.sub(r'[^A-Za-z0-9._-]', '_', item.label)}")
    return train_run(task, item.recipe, options, dataset, watcher, stop, peers)


def _parent_tags(task: Task, planned: Sequence[Planned], key: str) -> dict[str, str]:
    runs = "\n".join(f"- {item.label}" for item in planned)
    return {
        names.ROLE: ROLE,
        names.TASK: task.name,
        names.GROUP: key,
        names.SOURCE_NAME: "cnn-jobs",
        NOTE: f"**{task.name}** - {task.title}\n\n{len(planned)} runs:\n\n{runs}\n",
    }
