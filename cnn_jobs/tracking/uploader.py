"""Uploads a journal to MLflow: every record once, in order; a record is done only when it is acknowledged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.system.files import read_or_empty
from cnn_jobs.system.redaction import without_password
from cnn_jobs.tracking import names, ownership
from cnn_jobs.tracking.client import METRICS_PER_CALL, RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import RefusalError
from cnn_jobs.tracking.delivery import CursorFile, KnownRows, RejectedRecords
from cnn_jobs.tracking.journal import Entry, Reader
from cnn_jobs.tracking.outbox import Outbox
from cnn_jobs.tracking.records import AttemptMark, DatasetInput, Identity, Metric, RunHeader
from cnn_jobs.tracking.run_folder import COST_FILE, JOURNAL
from cnn_jobs.tracking.run_status import CANCELLED, FAILED, RunStatus


class Uploader:
    """Sends one run's journal to one server, from one thread. After an ``OutageError``, call ``round`` again.

    A ``replay`` only delivers: it claims no attempt, sends no heartbeat and leaves the status of a run that has ended.
    """

    def __init__(
        self,
        folder: Path,
        client: TrackingClient,
        header: RunHeader,
        mark: AttemptMark,
        *,
        replay: bool = False,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self.run: RemoteRun | None = None
        self.mark = mark
        # Rows and params new to the server, and earlier attempts' files, that this attempt added. Repetitions do not
        # count: otherwise an attempt that only repeats would always show progress.
        self.progress = 0
        self.checkpoints_sent = 0  # of this attempt
        self.rejected = RejectedRecords(folder, without_password(client.uri))
        self.caught_up_at = time.monotonic()  # when the server last had everything
        self._folder, self._client, self._header = folder, client, header
        self._replay, self._wait = replay, wait
        self._outbox, self._cursors = Outbox(folder), CursorFile(folder)
        self._read_to = self._cursors.highest()
        self._values: list[Entry] = []
        self._artifacts: dict[str, Entry] = {}
        self._checked_at = 0.0
        self._attached_to = ""
        self._answers = 0
        self._own_from: int | None = None
        self._ended = False

    def round(self) -> bool:
        """Sends what the journal holds now; returns whether nothing is left.

        Raises ``OutageError`` (what was acknowledged stays so), ``RefusalError`` if no run can be found or created, and
        ``AnotherAttemptError`` if another attempt owns the run.
        """
        began = time.monotonic()
        run = self.run or self._attach()
        try:
            self._beat(run)
            # What is recorded meanwhile belongs to the next round: otherwise a training with steps shorter than a call
            # to the server would delay its checkpoints until it ends.
            end = self._reader.size()
            while self._reader.offset < end and (entries := self._reader.read()):
                self._sort(entries)
                self._read_to = max(self._read_to, entries[-1].seq)
                self._send_values(run)
            self._send_values(run)
            self._send_artifacts(run)
        except ownership.DuplicateRunError:
            self.run = None
            raise
        if self._values or self._artifacts:
            return False
        self.caught_up_at = began
        return True

    def unsent(self, last_seq: int) -> int:
        """Records of a journal up to ``last_seq`` that the server has not acknowledged; for any thread."""
        return len(self._values) + len(self._artifacts) + max(0, last_seq - self._read_to)

    @property
    def advance(self) -> tuple[int, int]:
        """Changes with every answer that advanced the delivery, also within a round that failed."""
        return self._answers, self._known.unread if self._attached_to else 0

    def close(self, status: RunStatus) -> None:
        """Sets the run's final status, when ``round`` has nothing left to send, or when time is up."""
        run = self.run or self._attach()
        if self.rejected.count and status.status == "FINISHED":
            status = replace(status, status="FAILED", state=FAILED, reason=self.rejected.summary())
        # Raises if another attempt owns the run by now.
        now = ownership.check_owner(self._client, self._header, run, self.mark)
        if self._replay and now.status == "FINISHED":
            return  # the journal may have the status of a later attempt, which found nothing to do
        if now.cancelled and status.status == "KILLED":
            # It keeps the reason of its cancellation.
            why = now.tags.get(names.REASON, "")
            both = why if status.reason in why else f"{why}; {status.reason}"
            status = replace(status, state=CANCELLED, reason=both.removeprefix("; "))
        tags = {names.STATE: status.state, names.REASON: status.reason[:1000], names.COST: self._costs()}
        if names.PARENT_RUN_ID not in now.tags:  # created before the parent
            tags |= ownership.parent_tag(self._client, self._header)
        self._client.set_tags(run.run_id, {name: text for name, text in tags.items() if text or name in now.tags})
        if status.status == "FINISHED":
            self._client.delete_artifact(run.run_id, names.CHECKPOINT_SLOTS[1])
        if status.status != now.status:
            self._client.set_status(run.run_id, status.status, status.time_ms)
        self._ended = True

    # -- attaching to the run ------------------------------------------------------------------------------------

    def _attach(self) -> RemoteRun:
        run = ownership.find_or_create(self._client, self._header, self.mark)
        if self._replay:
            run = ownership.attach(self._client, self._header, run, self.mark)
        else:
            if not ownership.may_take_over(run, self.mark):
                ownership.wait_for_owner(self._client, self._header, run, self._wait)
            run, self.mark = ownership.claim(self._client, self._header, run, self.mark)
        if self._attached_to != run.run_id:  # otherwise keep the known rows
            self._attached_to, self._known = run.run_id, KnownRows(self._client, run)
        self._params = dict(run.params)
        self._cursor = self._cursors.load(self._client.uri).of(run.run_id)
        self._reader = Reader(self._folder / JOURNAL)
        self._values, self._artifacts = [], {}
        self._checked_at = time.monotonic()
        self.run = run
        return run

    def _beat(self, run: RemoteRun) -> None:
        """Every few seconds: checks that this attempt owns the run, and increments its heartbeat."""
        if self._replay or self._ended or time.monotonic() - self._checked_at < ownership.HEARTBEAT_INTERVAL_S:
            return
        now = ownership.check_owner(self._client, self._header, run, self.mark)
        tags = {names.HEARTBEAT: str(now.heartbeat + 1), names.COST: self._costs()}
        if now.status != "RUNNING" and not now.cancelled:  # declared lost while it was out of reach
            self._client.set_status(run.run_id, "RUNNING")
            tags |= {names.STATE: "running", names.REASON: ""}
        self._client.set_tags(run.run_id, {name: text for name, text in tags.items() if text or name in now.tags})
        self._checked_at = time.monotonic()

    def _costs(self) -> str:
        """The run's costs as its attempt last wrote them, "" for none."""
        return read_or_empty(self._folder / COST_FILE)

    # -- sending -------------------------------------------------------------------------------------------------

    def _sort(self, entries: Sequence[Entry]) -> None:
        """Into values and artifacts: an unreachable artifact store does not delay the metrics."""
        for entry in entries:
            if entry.kind == "attempt" and entry.content["id"] == self.mark.id:
                self._own_from = entry.seq
            if entry.kind == "artifact":
                if older := self._artifacts.pop(entry.content["to"], None):
                    self._outbox.discard(older.content)
                if entry.seq > self._cursor.artifacts:
                    self._artifacts[entry.content["to"]] = entry
                else:
                    self._outbox.discard(entry.content)
            elif entry.seq > self._cursor.values:
                self._values.append(entry)

    def _send_values(self, run: RemoteRun) -> None:
        while self._values:
            self._beat(run)
            count = self._send_metrics(run) if self._values[0].kind == "metrics" else self._send_one(run)
            self._cursor.values = self._values[count - 1].seq
            self._acknowledged()
            del self._values[:count]

    def _send_metrics(self, run: RemoteRun) -> int:
        """Sends the metrics at the head of the queue, as many as fit into one call; returns the number of entries."""
        points: dict[Identity, Metric] = {}
        count = 0
        for entry in self._values:
            if entry.kind != "metrics" or len(points) + len(entry.content["values"]) > METRICS_PER_CALL:
                break
            count += 1
            for key, value in entry.content["values"].items():
                point = Metric(key, value, entry.content["step"], entry.content["time_ms"])
                if not self._known.has(point):
                    points.setdefault(point.identity, point)
        self._log_metrics(run, list(points.values()))
        self._known.add(points)
        self.progress += len(points)
        return count

    def _log_metrics(self, run: RemoteRun, points: Sequence[Metric]) -> None:
        """Logs the points in one call; after a refusal halves them, until the refused ones are isolated."""
        if not points:
            return
        try:
            self._client.log_metrics(run.run_id, points)
        except RefusalError as refusal:
            self._check_run_exists(run)
            if len(points) == 1:
                self.rejected.add("metric", vars(points[0]), refusal)
                return
            self._log_metrics(run, points[: len(points) // 2])
            self._log_metrics(run, points[len(points) // 2 :])

    def _send_one(self, run: RemoteRun) -> int:
        entry = self._values[0]
        try:
            match entry.kind:
                case "params":
                    fresh = {k: v for k, v in entry.content["values"].items() if self._params.get(k) != v}
                    self._client.log_params(run.run_id, fresh)
                    self.progress += bool(fresh)
                case "tags":
                    self._client.set_tags(run.run_id, entry.content["values"])
                case "dataset":
                    self._client.log_dataset(run.run_id, DatasetInput(**entry.content))
        except RefusalError as refusal:
            self._check_run_exists(run)
            self.rejected.add(entry.kind, entry.content, refusal)
        return 1

    def _send_artifacts(self, run: RemoteRun) -> None:
        for to, entry in sorted(self._artifacts.items(), key=lambda item: item[1].seq):
            self._beat(run)
            path = self._outbox.find(entry.content)
            try:
                if path:
                    self._client.upload(run.run_id, path, to)
                    inherited = self._own_from is None or entry.seq < self._own_from
                    self.progress += inherited
                    self.checkpoints_sent += not inherited and to in names.CHECKPOINT_SLOTS
                elif not entry.content["passing"]:
                    raise RefusalError(f"{to}: its file in {self._folder} is gone or damaged")
            except RefusalError as refusal:
                self._check_run_exists(run)
                self.rejected.add("artifact", entry.content, refusal)
            self._outbox.discard(entry.content)
            del self._artifacts[to]
            waiting = [each.seq - 1 for each in self._artifacts.values()]
            self._cursor.artifacts = min(waiting, default=max(entry.seq, self._cursor.artifacts))
            self._acknowledged()
            if to in names.CHECKPOINT_SLOTS and (costs := self._costs()):
                # An attempt that resumes from this checkpoint elsewhere needs the costs up to here.
                self._client.set_tags(run.run_id, {names.COST: costs})

    def _acknowledged(self) -> None:
        self._answers += 1
        # On a full disk it lags behind, and more is sent again; the journal will report the full disk.
        with contextlib.suppress(CnnJobsError):
            self._cursors.save(self._client.uri, self._cursor)

    def _check_run_exists(self, run: RemoteRun) -> None:
        """Distinguishes a refused record from a deleted run: raises as ``check_owner``."""
        ownership.check_owner(self._client, self._header, run, self.mark)
