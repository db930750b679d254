"""Records a run: to its journal at once, and to MLflow from a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from cnn_jobs.errors import (
    AnotherAttemptError,
    CnnJobsError,
    NotShippedError,
    RejectedRecordsError,
    ThreadError,
    TrackingError,
)
from cnn_jobs.system.redaction import redact
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import REFUSED, UPLOAD_ERRORS, Backoff, OutageError, run_url
from cnn_jobs.tracking.outbox import Outbox
from cnn_jobs.tracking.records import AttemptMark, DatasetInput, RunHeader, now_ms
from cnn_jobs.tracking.run_folder import RunFolder
from cnn_jobs.tracking.run_status import RunStatus
from cnn_jobs.tracking.uploader import Uploader
from cnn_jobs.training.observer import Observer

UPLOAD_INTERVAL_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# At the end of a run the user waits.
LONGEST_LAST_PAUSE_S = 5.0
SYNC_INTERVAL_S = 0.9
# How long a start waits for a first answer of MLflow; the run also starts without one.
CONTACT_S = 5.0
# Time for the upload after a signal: a pod has little more than ten seconds in all.
FLUSH_TIMEOUT_S = 5.0
# Time for the upload of a failure's reason, which is also in the journal.
FAILURE_DEADLINE_S = 60.0


class MetricRecorder(Observer):
    """Turns what the training loop reports into metrics by name."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records metrics by name, at a global optimiser step."""
        raise NotImplementedError

    def step_finished(self, step: int, loss: float) -> None:
        """Records ``train/loss``."""
        self.metrics({names.TRAIN_LOSS: loss}, step)

    def speed_measured(self, step: int, images_per_second: float) -> None:
        """Records ``train/images_per_second``."""
        self.metrics({names.TRAIN_SPEED: images_per_second}, step)

    def validated(self, step: int, loss: float, accuracy: float) -> None:
        """Records ``val/loss`` and ``val/accuracy``."""
        self.metrics({names.VAL_LOSS: loss, names.VAL_ACCURACY: accuracy}, step)


class JournalRecorder(MetricRecorder):
    """The recorder of one attempt. ``metrics``, ``params``, ``tags``, ``dataset`` and ``artifact`` open no socket.

    They raise ``DiskFullError`` or ``StateDirError`` if the disk refuses. ``failure``: an error of another thread; it
    ends the run. ``outage``: the present outage of MLflow, which never ends a run. ``every_second`` runs in a thread.
    """

    def __init__(
        self,
        folder: RunFolder,
        client: TrackingClient,
        header: RunHeader,
        mark: AttemptMark,
        every_second: Callable[[], object] = lambda: None,
    ) -> None:
        self.failure: CnnJobsError | None = None
        self.outage = ""
        self.delivered = False
        self._folder, self._client, self._key = folder.path, client, header.run_key
        self._journal, self._outbox, self._every_second = folder.journal, Outbox(folder.path), every_second
        self._make_uploader = partial(Uploader, folder.path, client, header, mark, wait=self._sleep)
        self._uploader = self._make_uploader()
        self._status: RunStatus | None = None
        self._failed_calls = dict.fromkeys(UPLOAD_ERRORS, 0)
        self._closing, self._contact, self._over = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._upload, name="mlflow-uploader", daemon=True)
        self._ticker = threading.Thread(target=self._tick, name="journal-sync", daemon=True)

    def start(self, abort: Callable[[], bool] = lambda: False, contact_s: float = CONTACT_S) -> None:
        """Starts to upload; waits up to ``contact_s``, or until ``abort``, for a first answer of MLflow.

        Then raises ``failure`` if there is one: a refusal is reported before the training, not after it.
        """
        self._ticker.start()
        self._thread.start()
        end = time.monotonic() + contact_s
        while not self._contact.wait(0.05) and time.monotonic() < end and not abort():
            pass
        if self.failure:
            raise self.failure

    # -- facts, for any thread -------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """Id of the MLflow run, "" until it is known."""
        return self._uploader.run.run_id if self._uploader.run else ""

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI, "" until it is known."""
        run = self._uploader.run
        return run_url(self._client.uri, run.experiment_id, run.run_id) if run else ""

    @property
    def attempt(self) -> int:
        """This attempt's number, as far as it is known."""
        return self._uploader.mark.number

    @property
    def progress(self) -> int:
        """Number of rows, params and earlier attempts' files that this attempt added in MLflow."""
        return self._uploader.progress

    @property
    def checkpoints_sent(self) -> int:
        """How many checkpoints of this attempt MLflow has."""
        return self._uploader.checkpoints_sent

    def backlog(self) -> tuple[int, float]:
        """Records that MLflow has not acknowledged, and for how many seconds it has lacked any. Never waits."""
        records = self._uploader.unsent(self._journal.last_seq)
        return records, time.monotonic() - self._uploader.caught_up_at if records else 0.0

    @property
    def upload_errors(self) -> Mapping[str, int]:
        """Failed calls to MLflow, by kind (``UPLOAD_ERRORS``)."""
        return {**self._failed_calls, REFUSED: self._uploader.rejected.count}

    # -- recording -------------------------------------------------------------------------------------------------

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records metrics by name at a global optimiser step, with the present time."""
        values = {key: float(value) for key, value in values.items()}
        self._journal.append("metrics", {"step": step, "time_ms": now_ms(), "values": values})

    def params(self, values: Mapping[str, object]) -> None:
        """Records params by name, as text without secrets."""
        self._journal.append("params", {"values": {key: redact(str(value)) for key, value in values.items()}})

    def tags(self, values: Mapping[str, object]) -> None:
        """Records tags by name, as text without secrets."""
        self._journal.append("tags", {"values": {key: redact(str(value)) for key, value in values.items()}})

    def artifact(self, path: Path, to: str, *, passing: bool = False) -> None:
        """Records a file, or all files of a folder, as they are now; ``to`` is the path among the run's artifacts.

        ``passing``: a newer version will follow before the run is finished.
        """
        for content in self._outbox.stage(path, to, passing=passing):
            self._journal.append("artifact", content)

    def dataset(self, record: DatasetInput) -> None:
        """Records the data set that the run trains on."""
        self._journal.append("dataset", asdict(record))

    def sync(self) -> None:
        """Makes everything recorded so far survive a power loss."""
        self._journal.sync()

    # -- the end ---------------------------------------------------------------------------------------------------

    def deliver(
        self, what: str, deadline_s: float, stop: StopRequest | None = None, *, kept: Callable[[], bool]
    ) -> None:
        """Finishes the run. ``what``: the sentence with which the error begins, as in "run x is complete".

        Raises ``NotShippedError`` if MLflow lacks records after ``deadline_s`` seconds, or soon after a signal;
        ``kept``: whether the rest outlives this process. Otherwise raises as ``finish``.
        """
        if self.finish(run_status.finished(), deadline_s, stop):
            return
        why = self.outage or (stop.signal_name if stop else "") or "time is up"
        raise self.unsent_error(what, why, kept=kept())

    def unsent_error(self, what: str, why: str, *, kept: bool) -> NotShippedError:
        """The error for a run of which MLflow lacks records."""
        lost = "the rest is lost with this process: another attempt repeats it"
        rest = f"the rest is in {self._folder}" if kept else lost
        error = NotShippedError(f"{what}, but MLflow lacks a part of it ({why}); {rest}", kept=kept)
        error.run_key = self._key
        return error

    def fail(
        self, error: BaseException, deadline_s: float = FAILURE_DEADLINE_S, stop: StopRequest | None = None
    ) -> CnnJobsError | None:
        """Records that ``error`` ended the run, with its reason; returns what prevented that, if anything.

        After a signal the deadline is shorter.
        """
        if isinstance(error, NotShippedError):  # the journal has the end of the run already
            return None
        status = run_status.status_after(error)
        if status is None:
            self.stop()
            return None
        deadline_s = min(deadline_s, FAILURE_DEADLINE_S)
        if status.state == run_status.INTERRUPTED:
            deadline_s = stop.seconds_left(FLUSH_TIMEOUT_S) if stop else FLUSH_TIMEOUT_S
        try:
            self.finish(status, deadline_s, stop)
        except CnnJobsError as second:
            return second if second is not error else None
        return None

    def finish(self, status: RunStatus, deadline_s: float, stop: StopRequest | None = None) -> bool:
        """Records the status, uploads the rest and, last of all, the status; returns whether MLflow has everything.

        Stops after ``deadline_s`` seconds, or soon after a signal. Raises ``failure`` if there is one, and
        ``RejectedRecordsError`` if MLflow has all records except those that it refused: the run is FAILED then.
        """
        if self.failure and status.status == "FINISHED":
            raise self.failure
        # A full disk cannot take the status, but MLflow still can.
        with contextlib.suppress(CnnJobsError):
            self._journal.append("ending", status.as_dict())
            self._journal.sync()
        self._every_second()
        self._status = status
        self._closing.set()
        reported = isinstance(self.failure, TrackingError | AnotherAttemptError)
        if self.failure and not reported and not self._thread.is_alive():
            # The thread that should have reported it is dead: start another one.
            self._uploader = self._make_uploader()
            self._thread = threading.Thread(target=self._upload, name="mlflow-uploader-2", daemon=True)
            self._thread.start()
        end = time.monotonic() + deadline_s
        aborted = False
        while self._thread.is_alive() and time.monotonic() < end:
            if not aborted and stop and stop.requested():
                aborted, end = True, min(end, time.monotonic() + FLUSH_TIMEOUT_S)
            self._thread.join(0.05)
        self.stop()
        if self.failure:
            raise self.failure
        if self.delivered and self._uploader.rejected.count:
            raise RejectedRecordsError(self._uploader.rejected.summary())
        return self.delivered

    def finish_later(self, status: RunStatus) -> None:
        """Records the status and stops without uploading it: another process will do so."""
        self._journal.append("ending", status.as_dict())
        self._journal.sync()
        self.stop()

    def stop(self) -> None:
        """Stops without recording anything: another attempt owns the run."""
        self._over.set()
        if self._ticker.ident:  # it was started
            self._ticker.join()

    # -- threads ---------------------------------------------------------------------------------------------------

    def _upload(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        # When the journal is closed the folder is released, and another attempt sends the rest.
        while not self._journal.closed:
            # Read before the round: what was recorded before the flag was set is then part of the round.
            closing, before = self._closing.is_set(), self._uploader.advance
            try:
                done = self._uploader.round()
                self.outage = ""
                backoff.reset()
                if closing and done:
                    assert self._status
                    self._uploader.close(self._status)
                    self.delivered = True
                    return
                self._contact.set()
                self._closing.wait(0 if closing else UPLOAD_INTERVAL_S)
            except OutageError as outage:
                self.outage = str(outage)
                if outage.kind:
                    self._failed_calls[outage.kind] += 1
                self._contact.set()
                if self._uploader.advance != before:  # a bad connection, but a connection
                    backoff.reset()
                self._report_failed_run()
                with contextlib.suppress(OutageError):
                    self._sleep(backoff.next())
            except BaseException as error:  # any error is reported in the main thread
                self.failure = self.failure or _as_failure("uploader", error)
                self._contact.set()
                self._report_failed_run()
                return

    def _report_failed_run(self) -> None:
        """Sets a failed run's status even if the rest cannot be sent: there may be no later attempt to do so."""
        if self._status and self._status.status != "FINISHED":
            with contextlib.suppress(Exception):  # the outage, or the bug, that prevents the rest
                self._uploader.close(self._status)

    def _sleep(self, seconds: float) -> None:
        """Raises ``OutageError`` if the run ends meanwhile, so that the call is tried once more."""
        if self._closing.is_set():
            time.sleep(min(seconds, LONGEST_LAST_PAUSE_S))
        elif self._closing.wait(seconds):
            raise OutageError("the run ends", kind="")

    def _tick(self) -> None:
        while not self._over.wait(SYNC_INTERVAL_S):
            try:
                self._journal.sync()
                self._every_second()
            except BaseException as error:
                self.failure = self.failure or _as_failure("journal", error)
                return


def _as_failure(thread: str, error: BaseException) -> CnnJobsError:
    if isinstance(error, CnnJobsError):
        return error
    failure = ThreadError(f"the {thread} thread died of {type(error).__name__}: {error}; please report this")
    failure.__cause__ = error
    return failure
