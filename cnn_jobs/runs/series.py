"""Several runs of one command, one after another, below a parent run in MLflow."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence

from cnn_jobs.errors import CONTINUE, CnnJobsError, InterruptedRunError, NotShippedError
from cnn_jobs.recipe import Planned
from cnn_jobs.runs.setup import RunResult, Session
from cnn_jobs.runs.train import train_run
from cnn_jobs.system.environment import look_up_timeout_s
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import OutageError
from cnn_jobs.tracking.document_run import open_recorder
from cnn_jobs.tracking.ownership import find_run
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.tracking.run_folder import RunFolder

Outcome = tuple[list[RunResult], list[CnnJobsError]]


def train_series(session: Session, planned: Sequence[Planned], report_error: Callable[[str], None]) -> Outcome:
    """Trains the planned runs; returns results and errors. ``report_error`` gets a line for each failed run at once.

    Their parent in MLflow trains nothing; it is FINISHED when all its runs are. The runs' keys are the parent's key and
    their labels, so that the same key continues the whole series.
    """
    options, stop = session.options, session.stop
    key = options.run_key or uuid.uuid4().hex[:16]
    name = options.run_name or f"{session.task.name}-{len(planned)}-runs"
    header = RunHeader(options.experiment, key, name, now_ms(), _parent_tags(session.task, planned, key))
    below = session.with_options(parent_key=key, group=options.group or key)
    if options.run_key and _is_finished(session, header):
        # Nothing is left to do, or other options are refused: the parent stays as it is.
        results, errors = _train_all(below, key, planned, report_error)
    else:
        with RunFolder(options.state_dir / key) as folder:
            with stop.masked():
                permissions = {"replaces_any": options.key_from_job, "revives": options.resume == "must"}
                parent = open_recorder(folder, options.tracking_uri, header, reopens=True, **permissions)
            try:
                with stop.masked():
                    parent.start(stop.requested)
                    # The same key may be used again with more runs than before.
                    parent.tags({names.NOTE: header.tags[names.NOTE]})
                results, errors = _train_all(below, key, planned, report_error)
                with stop.masked():
                    _finish_parent(parent, session, errors)
            except BaseException as error:
                with stop.masked():
                    parent.fail(error, options.ship_deadline_s, stop)
                raise
    for each in errors:
        if isinstance(each, InterruptedRunError):
            # To continue after a signal is to continue the series: with progress if any of its runs made some.
            each.run_key = key
            if any(not result.note for result in results) or any(other.exit_code == CONTINUE for other in errors):
                each.exit_code = CONTINUE
    return results, errors


def _train_all(session: Session, key: str, planned: Sequence[Planned], report_error: Callable[[str], None]) -> Outcome:
    """A run that fails does not stop the others; a signal does."""
    results: list[RunResult] = []
    errors: list[CnnJobsError] = []
    for item in planned:
        name = f"{session.options.run_name or session.task.name}-{item.label}"
        run_key = f"{key}-{re.sub(r'[^A-Za-z0-9._-]', '_', item.label)}"
        try:
            session.stop.check()
            results.append(train_run(session.with_options(run_name=name, run_key=run_key), item.recipe))
        except InterruptedRunError as error:
            errors.append(error)
            break
        except CnnJobsError as error:
            errors.append(error)
            report_error(f"{item.label}: {error}")
    return results, errors


def exit_code(errors: Sequence[CnnJobsError]) -> int:
    """Of a series: 0 if no run failed; that of the signal which stopped it; else 1 if a failed run may succeed another
    time, 75 if one continues with the same command, 2 if no failed run can succeed."""
    codes = {error.exit_code for error in errors}
    if errors and isinstance(errors[-1], InterruptedRunError):
        return errors[-1].exit_code
    return next((code for code in (1, CONTINUE, 2) if code in codes), 0)


def _is_finished(session: Session, header: RunHeader) -> bool:
    """Whether MLflow has the parent, FINISHED with exactly the planned runs.

    Raises ``RunMismatchError`` where the key is that of another run.
    """
    try:
        found = find_run(TrackingClient(session.options.tracking_uri), header, look_up_timeout_s())
    except OutageError:
        return False
    if found is None:
        return False
    header.check_same(found.tags, f"run {found.run_id} in MLflow")
    return found.status == "FINISHED" and found.tags.get(names.NOTE) == header.tags[names.NOTE]


def _finish_parent(parent: JournalRecorder, session: Session, errors: list[CnnJobsError]) -> None:
    """FINISHED where no run failed, KILLED after a signal, else FAILED; its own error is added to ``errors``."""
    options, stop = session.options, session.stop
    what, kept = "the series is complete", options.state_outlives_process
    second: CnnJobsError | None = None
    if errors and not stop.signal_name and all(isinstance(error, NotShippedError) for error in errors):
        # All runs are trained: the parent's status waits in its journal until theirs are uploaded.
        parent.finish_later(run_status.finished())
        second = parent.unsent_error(what, parent.outage or "its runs come first", kept=kept)
    elif errors:
        whole = errors[-1] if stop.signal_name or len(errors) == 1 else CnnJobsError("; ".join(map(str, errors)))
        second = parent.fail(whole, options.ship_deadline_s, stop)
    else:
        try:
            parent.deliver(what, options.ship_deadline_s, stop, kept=lambda: kept)
        except CnnJobsError as error:
            second = error
    if second:
        errors.append(second)


def _parent_tags(task: Task, planned: Sequence[Planned], key: str) -> dict[str, str]:
    runs = "\n".join(f"- {item.label}" for item in planned)
    return {
        names.ROLE: names.PARENT,
        names.TASK: task.name,
        names.GROUP: key,
        names.SOURCE_NAME: "cnn-jobs",
        names.NOTE: f"**{task.name}** - {task.title}\n\n{len(planned)} runs:\n\n{runs}\n",
    }
