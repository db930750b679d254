"""One MLflow run: the training thread leaves records, a thread of its own sends them."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jobs.errors import TrackingError
from cnn_jobs.tracking import mlflow_client
from cnn_jobs.tracking.connection import check_uri, configure_client, explain, is_transient, run_url
from cnn_jobs.tracking.records import Artifact, DatasetInput, Metric, Params, Record, RunRequest, Tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHIP_INTERVAL_S = 1.0
LONGEST_BACKOFF_S = 30.0
# The first contact must succeed in this time: a wrong address is told before the training, not after it.
CONNECT_DEADLINE_S = 15.0


class MlflowRecorder:
    """Makes the run on ``start``, sends records while the training goes on, waits for the last on ``finish``.

    ``metrics``, ``params``, ``tags``, ``artifact`` and ``dataset`` return at once and never raise; a refusal for good
    is in ``failure`` from then on, an outage is retried.
    """

    def __init__(self, tracking_uri: str, request: RunRequest) -> None:
        self.tracking_uri = check_uri(tracking_uri)
        self.run_id = ""
        self.experiment_id = ""
        self.failure: TrackingError | None = None
        self._request = request
        self._queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._final_status = ""
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._ship, name="mlflow-shipper", daemon=True)
        self._started = threading.Event()

    def start(self) -> None:
        """Connects and makes the run. Raises ``TrackingError`` where that does not work."""
        configure_client()
        self._thread.start()
        self._started.wait()
        if self.failure:
            raise self.failure

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI; for a database, its URI and the run's id."""
        return run_url(self.tracking_uri, self.experiment_id, self.run_id)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name at a global optimiser step, stamped with the present time."""
        timestamp = mlflow_client.now_ms()
        for key, value in values.items():
            self._queue.put(Metric(key, float(value), step, timestamp))

    def params(self, values: Mapping[str, object]) -> None:
        """Params by name, as text."""
        self._queue.put(Params({key: str(value) for key, value in values.items()}))

    def tags(self, values: Mapping[str, object]) -> None:
        """Tags by name, as text."""
        self._queue.put(Tags({key: str(value) for key, value in values.items()}))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder; it must stay as it is until ``finish`` has returned."""
        self._queue.put(Artifact(path, folder))

    def dataset(self, record: DatasetInput) -> None:
        """The data set that the run trains on."""
        self._queue.put(record)

    def finish(self, status: str, deadline_s: float) -> None:
        """Sends what is left within ``deadline_s`` seconds, then sets the run's status (``FINISHED``, ...).

        Raises ``TrackingError`` where something was refused or did not get through; FINISHED is then never set.
        """
        self._final_status = status
        self._deadline = time.monotonic() + deadline_s
        self._closing.set()
        self._thread.join()
        if self.failure:
            raise self.failure

    def _ship(self) -> None:
        try:
            self._connect()
        except TrackingError as error:
            self.failure = error
            return
        finally:
            self._started.set()
        last_round = False
        while not last_round:
            # Read before draining: what comes in after the flag was set is not missed.
            last_round = self._closing.wait(SHIP_INTERVAL_S)
            for batch in self._drain():
                self._attempt(partial(mlflow_client.send, self._client(), self.run_id, batch))
        status = "FAILED" if self.failure and self._final_status == "FINISHED" else self._final_status
        self._attempt(lambda: self._client().set_terminated(self.run_id, status))

    def _attempt(self, call: Callable[[], object]) -> None:
        """``_until_acknowledged``, with the first error kept in ``failure``: what comes after it is still sent."""
        try:
            self._until_acknowledged(call)
        except TrackingError as error:
            self.failure = self.failure or error

    def _connect(self) -> None:
        self._deadline = time.monotonic() + CONNECT_DEADLINE_S

        def connect() -> None:
            self.experiment_id, self.run_id = mlflow_client.create_run(self._client(), self._request)

        self._until_acknowledged(connect)
        self._deadline = float("inf")

    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri)

    def _drain(self) -> Iterator[list[Record]]:
        """What has come in, in order, as runs of records of one kind."""
        records = []
        while not self._queue.empty():
            records.append(self._queue.get())
        for _, batch in groupby(records, key=type):
            yield list(batch)

    def _until_acknowledged(self, call: Callable[[], object]) -> None:
        """Repeats ``call`` over an outage, with growing, jittered pauses, until the deadline.

        Raises ``TrackingError`` for a refusal or when the time is up.
        """
        pause = 0.5
        while True:
            try:
                call()
                return
            except Exception as error:  # whatever MLflow raises, the shipper must outlive it
                out_of_time = time.monotonic() + pause > self._deadline
                if not is_transient(error) or out_of_time:
                    raise TrackingError(explain(error, self.tracking_uri)) from error
            # Jitter, so that the pods of one outage do not come back in step.
            delay = pause * random.uniform(0.5, 1.0)
            if self._closing.is_set():
                time.sleep(min(delay, 1.0))
            else:
                self._closing.wait(delay)
            pause = min(2 * pause, LONGEST_BACKOFF_S)
