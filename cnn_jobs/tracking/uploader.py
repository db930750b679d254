"""A journal to MLflow: everything once, in order, forgotten only when acknowledged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.tracking import names, ownership
from cnn_jobs.tracking.client import METRICS_PER_CALL, RefusalError, RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import without_password
from cnn_jobs.tracking.delivery import CursorFile, KnownRows, RejectedRecords
from cnn_jobs.tracking.journal import Entry, Reader
from cnn_jobs.tracking.outbox import Outbox
from cnn_jobs.tracking.records import (
    CANCELLED,
    AttemptMark,
    DatasetInput,
    Ending,
    Identity,
    Metric,
    RunHeader,
)

JOURNAL, LEDGER_TAG = "journal.jsonl", names.COST


class Uploader:
    """Sends one run's journal to one server. For one thread; after an ``OutageError`` call ``round`` again.

    With ``replay`` it only delivers: no attempt is claimed, no heartbeat moves and a run that has ended stays so.
    """

    def __init__(
        self,
        folder: Path,
        remote: TrackingClient,
        header: RunHeader,
        mark: AttemptMark,
        *,
        replay: bool = False,
        wait: Callable[[float], object] = time.sleep,
        ledger: Callable[[], str] = str,
    ) -> None:
        self.run: RemoteRun | None = None
        self.mark = mark
        # What this attempt brought further: rows and params that the server did not have, files that earlier attempts
        # left. Repeating what is there already is none, or an attempt that repeats for ever would always have some.
        self.progress = 0
        self.checkpoints_sent = 0  # of this attempt
        self.rejected = RejectedRecords(folder, without_password(remote.uri))
        self._folder, self._remote, self._header = folder, remote, header
        self._replay, self._wait, self._ledger = replay, wait, ledger
        self._outbox, self._cursors = Outbox(folder), CursorFile(folder)
        self.caught_up = time.monotonic()  # when the server last had everything
        self._read_to = self._cursors.highest()
        self._values: list[Entry] = []
        self._artifacts: dict[str, Entry] = {}
        self._checked = 0.0
        self._joined = ""
        self._answers = 0
        self._own_from: int | None = None
        self._ended = False

    def round(self) -> bool:
        """Sends what the journal holds now; whether nothing is left.

        Raises ``OutageError`` (what was acknowledged stays so), ``RefusalError`` where no run can be had, and
        ``AnotherAttemptError`` where this attempt is no longer the one to send.
        """
        began = time.monotonic()
        run = self.run or self._join()
        try:
            self._beat(run)
            # What comes meanwhile is the next round's: a training whose steps are quicker than a call to the server
            # would hold up its checkpoints until it ends.
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
        self.caught_up = began
        return True

    def unsent(self, last_seq: int) -> int:
        """Records that the server has not acknowledged, of a journal that ends with ``last_seq``; for any thread."""
        return len(self._values) + len(self._artifacts) + max(0, last_seq - self._read_to)

    @property
    def advance(self) -> tuple[int, int]:
        """Changes with every answer that brought the delivery further, also within a round that failed."""
        return self._answers, self._known.unread if self._joined else 0

    def close(self, ending: Ending) -> None:
        """Says how the run ended; call it when ``round`` says that nothing is left, or that no time is."""
        run = self.run or self._join()
        if self.rejected.count and ending.status == "FINISHED":
            ending = replace(ending, status="FAILED", state="failed", reason=self.rejected.summary())
        # Not over the head of an attempt that has the run by now.
        now = ownership.check_claim(self._remote, self._header, run, self.mark)
        if self._replay and now.status == "FINISHED":
            return  # whatever a later attempt, which found nothing to do, left in the journal
        if now.cancelled and ending.status == "KILLED":
            # Who cancelled it said why; this attempt only obeys.
            told = now.tags.get(names.REASON, "")
            both = told if ending.reason in told else f"{told}; {ending.reason}"
            ending = replace(ending, state=CANCELLED, reason=both.removeprefix("; "))
        tags = {names.STATE: ending.state, names.REASON: ending.reason[:1000], LEDGER_TAG: self._ledger()}
        if names.PARENT_RUN_ID not in now.tags:  # made while the parent could not be
            tags |= ownership.parent_tag(self._remote, self._header)
        self._remote.set_tags(run.run_id, {name: text for name, text in tags.items() if text or name in now.tags})
        if ending.status == "FINISHED":
            self._remote.delete_artifact(run.run_id, names.CHECKPOINT_SLOTS[1])
        if ending.status != now.status:
            self._remote.set_status(run.run_id, ending.status, ending.time_ms)
        self._ended = True

    # -- joining -------------------------------------------------------------------------------------------------

    def _join(self) -> RemoteRun:
        run = ownership.find_or_create(self._remote, self._header, self.mark)
        if self._replay:
            run = ownership.adopt(self._remote, self._header, run, self.mark)
        else:
            if not ownership.may_take_over(run, self.mark):
                ownership.wait_until_still(run, lambda: self._again(run), self._wait)
            run, self.mark = ownership.claim(self._remote, self._header, run, self.mark)
        if self._joined != run.run_id:  # else what is known of it stays so
            self._joined, self._known = run.run_id, KnownRows(self._remote, run)
        self._params = dict(run.params)
        self._cursor = self._cursors.load(self._remote.uri).of(run.run_id)
        self._reader = Reader(self._folder / JOURNAL)
        self._values, self._artifacts = [], {}
        self._checked = time.monotonic()
        self.run = run
        return run

    def _again(self, run: RemoteRun) -> RemoteRun:
        runs = ownership.runs_of_key(self._remote, self._header)
        return next((each for each in runs if each.run_id == run.run_id), run)

    def _beat(self, run: RemoteRun) -> None:
        """Every few seconds: is the run still this attempt's? And a sign of life."""
        if self._replay or self._ended or time.monotonic() - self._checked < ownership.HEARTBEAT_INTERVAL_S:
            return
        now = ownership.check_claim(self._remote, self._header, run, self.mark)
        tags = {names.HEARTBEAT: str(now.heartbeat + 1), LEDGER_TAG: self._ledger()}
        if now.status != "RUNNING" and not now.cancelled:  # taken for lost while it could not be heard
            self._remote.set_status(run.run_id, "RUNNING")
            tags |= {names.STATE: "running", names.REASON: ""}
        self._remote.set_tags(run.run_id, {name: text for name, text in tags.items() if text or name in now.tags})
        self._checked = time.monotonic()

    # -- sending -------------------------------------------------------------------------------------------------

    def _sort(self, entries: Sequence[Entry]) -> None:
        """To values and artifacts: a file store that is away does not hold up the metrics."""
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
        """The metrics at the head of the line, as many as one call takes; how many entries these were."""
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
        """One call; where it is refused, halves, until the rows that are to blame stand alone."""
        if not points:
            return
        try:
            self._remote.log_metrics(run.run_id, points)
        except RefusalError as refusal:
            self._still_there(run)
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
                    self._remote.log_params(run.run_id, fresh)
                    self.progress += bool(fresh)
                case "tags":
                    self._remote.set_tags(run.run_id, entry.content["values"])
                case "dataset":
                    self._remote.log_dataset(run.run_id, DatasetInput(**entry.content))
        except RefusalError as refusal:
            self._still_there(run)
            self.rejected.add(entry.kind, entry.content, refusal)
        return 1

    def _send_artifacts(self, run: RemoteRun) -> None:
        for to, entry in sorted(self._artifacts.items(), key=lambda item: item[1].seq):
            self._beat(run)
            path = self._outbox.find(entry.content)
            try:
                if path:
                    self._remote.upload(run.run_id, path, to)
                    inherited = self._own_from is None or entry.seq < self._own_from
                    self.progress += inherited
                    self.checkpoints_sent += not inherited and to in names.CHECKPOINT_SLOTS
                elif not entry.content["passing"]:
                    raise RefusalError(f"{to}: its file in {self._folder} is gone or damaged")
            except RefusalError as refusal:
                self._still_there(run)
                self.rejected.add("artifact", entry.content, refusal)
            self._outbox.discard(entry.content)
            del self._artifacts[to]
            waiting = [each.seq - 1 for each in self._artifacts.values()]
            self._cursor.artifacts = min(waiting, default=max(entry.seq, self._cursor.artifacts))
            self._acknowledged()
            if to in names.CHECKPOINT_SLOTS and (ledger := self._ledger()):
                # Who goes on from this checkpoint, on another machine, needs the costs up to here.
                self._remote.set_tags(run.run_id, {LEDGER_TAG: ledger})

    def _acknowledged(self) -> None:
        self._answers += 1
        # On a full disk it lags behind, and more is sent again; the journal will say that the disk is full.
        with contextlib.suppress(CnnJobsError):
            self._cursors.save(self._remote.uri, self._cursor)

    def _still_there(self, run: RemoteRun) -> None:
        """Whether it is the record that was refused, or the run that is gone: raises as ``check_claim``."""
        ownership.check_claim(self._remote, self._header, run, self.mark)
