"""What a run has to tell: to the journal at once, to MLflow from a thread of its own."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cnn_jobs.errors import AnotherAttemptError, CnnJobsError, RejectedRecordsError, ThreadError, TrackingError
from cnn_jobs.tracking.client import OutageError, TrackingClient
from cnn_jobs.tracking.connection import REFUSED, SHIP_ERRORS, run_url
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.outbox import Outbox
from cnn_jobs.tracking.records import AttemptMark, DatasetInput, Ending, RunHeader, now_ms
from cnn_jobs.tracking.uploader import Uploader

SHIP_INTERVAL_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# At the end somebody waits for it.
LONGEST_LAST_PAUSE_S = 5.0
SYNC_INTERVAL_S = 0.9
# What is left for MLflow after a signal: a pod has little more than ten seconds in all.
FLUSH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Backlog:
    """Records that MLflow has not acknowledged, and for how many seconds it has not had everything."""

    records: int
    seconds: float


class JournalRecorder:
    """The recorder of one attempt. ``metrics``, ``params``, ``tags``, ``dataset`` and ``artifact`` open no socket.

    They raise ``DiskFullError`` or ``StateDirError`` where the disk refuses. What ends the run from another thread is
    in ``failure``; an outage is not among it, the last one is in ``outage`` until it is over.
    """

    def __init__(
        self,
        folder: Path,
        remote: TrackingClient,
        journal: Journal,
        header: RunHeader,
        mark: AttemptMark,
        *,
        ledger: Callable[[], str] = str,
        on_tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.failure: CnnJobsError | None = None
        self.outage = ""
        self.delivered = False
        self._remote, self._journal, self._outbox, self._on_tick = remote, journal, Outbox(folder), on_tick
        self._make_shipper = partial(Uploader, folder, remote, header, mark, wait=self._sleep, ledger=ledger)
        self._shipper = self._make_shipper()
        self._ending: Ending | None = None
        self._failed_calls = dict.fromkeys(SHIP_ERRORS, 0)
        self._closing, self._contact, self._over = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._ship, name="mlflow-shipper", daemon=True)
        self._ticker = threading.Thread(target=self._tick, name="journal-sync", daemon=True)

    def start(self, contact_s: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Starts to send; waits up to ``contact_s`` seconds, or until ``hurry``, for a first word from MLflow.

        Raises what stands in ``failure`` then: a server that refuses is told before the training, not after it.
        """
        self._ticker.start()
        self._thread.start()
        end = time.monotonic() + contact_s
        while not self._contact.wait(0.05) and time.monotonic() < end and not hurry():
            pass
        if self.failure:
            raise self.failure

    @property
    def run_id(self) -> str:
        """Id of the MLflow run, "" until it is known."""
        return self._shipper.run.run_id if self._shipper.run else ""

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI; "" until it is known."""
        run = self._shipper.run
        return run_url(self._remote.uri, run.experiment_id, run.run_id) if run else ""

    @property
    def attempt(self) -> int:
        """This attempt's number, as far as it is known."""
        return self._shipper.mark.number

    @property
    def progress(self) -> int:
        """What MLflow has by this attempt: rows, params, files that earlier ones left."""
        return self._shipper.progress

    @property
    def checkpoints_sent(self) -> int:
        """How many checkpoints of this attempt MLflow has."""
        return self._shipper.checkpoints_sent

    def backlog(self) -> Backlog:
        """What MLflow has yet to acknowledge. Waits for nothing: any thread may ask at any time."""
        records = self._shipper.unsent(self._journal.last_seq)
        return Backlog(records, time.monotonic() - self._shipper.caught_up if records else 0.0)

    @property
    def ship_errors(self) -> Mapping[str, int]:
        """How often a call to MLflow failed, by the kinds of ``SHIP_ERRORS``."""
        return {**self._failed_calls, REFUSED: self._shipper.rejected.count}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name at a global optimiser step, stamped with the present time."""
        values = {key: float(value) for key, value in values.items()}
        self._journal.append("metrics", {"step": step, "time_ms": now_ms(), "values": values})

    def params(self, values: Mapping[str, object]) -> None:
        """Params by name, as text."""
        self._journal.append("params", {"values": {key: str(value) for key, value in values.items()}})

    def tags(self, values: Mapping[str, object]) -> None:
        """Tags by name, as text."""
        self._journal.append("tags", {"values": {key: str(value) for key, value in values.items()}})

    def artifact(self, path: Path, to: str, *, passing: bool = False) -> None:
        """A file, or all files of a folder, as they are now; ``to`` is the path among the run's artifacts.

        ``passing``: a newer one of that name will be recorded before the run is finished.
        """
        for content in self._outbox.stage(path, to, passing=passing):
            self._journal.append("artifact", content)

    def dataset(self, record: DatasetInput) -> None:
        """The data set that the run trains on."""
        self._journal.append("dataset", asdict(record))

    def sync(self) -> None:
        """Returns when all that was recorded is safe from a power loss."""
        self._journal.sync()

    def finish(self, ending: Ending, deadline_s: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Notes the ending, sends what is left and, last of all, the run's status; whether MLflow has it all.

        Gives up after ``deadline_s`` seconds, or soon after ``hurry`` says so. Raises what stands in ``failure``, and
        ``RejectedRecordsError`` where MLflow has it all but what it refused: the run is FAILED then.
        """
        if self.failure and ending.status == "FINISHED":
            raise self.failure
        # A full disk cannot take the ending, but MLflow still can.
        with contextlib.suppress(CnnJobsError):
            self._journal.append("ending", ending.as_dict())
            self._journal.sync()
        self._ending = ending
        self._closing.set()
        told_why = isinstance(self.failure, TrackingError | AnotherAttemptError)
        if self.failure and not told_why and not self._thread.is_alive():
            # The thread that should have said so is dead: one more.
            self._shipper = self._make_shipper()
            self._thread = threading.Thread(target=self._ship, name="mlflow-shipper-2", daemon=True)
            self._thread.start()
        end = time.monotonic() + deadline_s
        hurried = False
        while self._thread.is_alive() and time.monotonic() < end:
            if not hurried and hurry():
                hurried, end = True, min(end, time.monotonic() + FLUSH_TIMEOUT_S)
            self._thread.join(0.05)
        self._over.set()
        self._ticker.join()
        if self.failure:
            raise self.failure
        if self.delivered and self._shipper.rejected.count:
            raise RejectedRecordsError(self._shipper.rejected.summary())
        return self.delivered

    def leave(self, ending: Ending) -> None:
        """Notes the ending for whoever sends the rest, and stops without sending it."""
        self._journal.append("ending", ending.as_dict())
        self._journal.sync()
        self.abandon()

    def abandon(self) -> None:
        """Stops without a word: the run is another attempt's."""
        self._over.set()
        self._ticker.join()

    def _ship(self) -> None:
        pause = FIRST_PAUSE_S
        # Once the journal is closed the folder is free, and what is left in it another attempt's to send.
        while not self._journal.closed:
            # Read before the round: what was recorded before the flag was set is then in the round.
            closing, before = self._closing.is_set(), self._shipper.advance
            try:
                done = self._shipper.round()
                self.outage, pause = "", FIRST_PAUSE_S
                if closing and done:
                    self._close()
                    return
                self._contact.set()
                self._closing.wait(0 if closing else SHIP_INTERVAL_S)
            except OutageError as outage:
                self.outage = str(outage)
                if outage.kind:
                    self._failed_calls[outage.kind] += 1
                self._contact.set()
                if self._shipper.advance != before:  # a bad line, but a line
                    pause = FIRST_PAUSE_S
                self._tell_a_bad_end()
                # Jitter, so that the pods of one outage do not come back in step.
                with contextlib.suppress(OutageError):
                    self._sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except BaseException as error:  # told in the main thread, whatever it is
                self.failure = self.failure or _as_failure("shipper", error)
                self._contact.set()
                self._tell_a_bad_end()
                return

    def _tell_a_bad_end(self) -> None:
        """A run that failed is told as such, also where the rest of it cannot be sent: nobody may come after it."""
        if self._ending and self._ending.status != "FINISHED":
            with contextlib.suppress(Exception):  # the outage, or the bug, that is in the way of the rest
                self._shipper.close(self._ending)

    def _close(self) -> None:
        assert self._ending
        self._shipper.close(self._ending)
        self.delivered = True

    def _sleep(self, seconds: float) -> None:
        """Raises ``OutageError`` when the end comes meanwhile: whatever was waited for is asked once more, then."""
        if self._closing.is_set():
            time.sleep(min(seconds, LONGEST_LAST_PAUSE_S))
        elif self._closing.wait(seconds):
            raise OutageError("the run ends", kind="")

    def _tick(self) -> None:
        while not self._over.wait(SYNC_INTERVAL_S):
            try:
                self._journal.sync()
                self._on_tick()
            except BaseException as error:
                self.failure = self.failure or _as_failure("journal", error)
                return


def _as_failure(thread: str, error: BaseException) -> CnnJobsError:
    if isinstance(error, CnnJobsError):
        return error
    failure = ThreadError(f"the {thread} thread died of {type(error).__name__}: {error}; please report this")
    failure.__cause__ = error
    return failure
