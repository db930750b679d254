"""The log of a Job: what its pods have written so far, or followed from pod to pod until the Job is over."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cnn_jobs.cluster.client import Cluster, NotFoundError
from cnn_jobs.cluster.status import JobStatus, PodStatus, job_status, pods_of
from cnn_jobs.errors import ClusterError

POLL_S = 1.0


@dataclass(frozen=True)
class LogLine:
    """A line of a pod's log; ``index``: of its pod, ``None`` in a Job without indexes."""

    index: int | None
    text: str


def current_lines(cluster: Cluster, job: JobStatus, index: int | None, *, all_attempts: bool) -> Iterator[LogLine]:
    """The log so far of each index's last pod, or of all its pods, oldest first.

    Raises ``ClusterError`` (exit 1) if no pod has a log yet.
    """
    pods: dict[int | None, list[PodStatus]] = defaultdict(list)
    for pod in pods_of(cluster, job, index):
        pods[pod.index].append(pod)
    ready = [each for attempts in pods.values() for each in attempts[0 if all_attempts else -1 :] if each.started]
    if not ready:
        why = "; ".join(f"{attempts[-1].name}: {attempts[-1].text}" for attempts in pods.values()) or job.state
        raise ClusterError(f"Job {job.name} has no log yet ({why}); 'cnn-jobs logs -f {job.name}' waits for it")
    for pod in sorted(ready, key=lambda each: -1 if each.index is None else each.index):
        with cluster.log(pod.name, job.container, follow=False) as chunks:
            for text in LineFilter().read(chunks, complete=True):
                yield LogLine(pod.index, text)


@dataclass
class _Reader:
    """A thread that reads one pod's log. ``ended``: the pod has ended; ``done``: its log is read to the end."""

    pod: str
    ended: threading.Event = field(default_factory=threading.Event)
    done: bool = False


class Follower:
    """The logs of all pods of a Job, attempt after attempt, until the Job is over or deleted.

    ``notify`` receives messages about waiting, the next attempt and lost connections.
    """

    def __init__(self, cluster: Cluster, job: JobStatus, index: int | None, notify: Callable[[str], object]) -> None:
        self._cluster, self._job, self._index, self._notify = cluster, job, index, notify
        self._lines: queue.SimpleQueue[LogLine | BaseException] = queue.SimpleQueue()
        self._readers: dict[int | None, _Reader] = {}
        self._read: set[str] = set()
        self._last_message = ""

    def lines(self) -> Iterator[LogLine]:
        """Each line once, as it arrives. Raises the error of a reader that cannot continue."""
        while True:
            finished = self._start_readers() and all(each.done for each in self._readers.values())
            yield from self._received(0.0 if finished else POLL_S)
            if finished:
                return

    def _received(self, seconds: float) -> Iterator[LogLine]:
        """Lines that readers have received, or receive within ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(line, BaseException):
                raise line
            yield line

    def _start_readers(self) -> bool:
        """Starts readers for new pods; whether no further pod will need one."""
        try:
            # The Job first: no pod is created after it is over.
            found = self._cluster.job(self._job.name)
            pods = pods_of(self._cluster, self._job, self._index)
        except ClusterError as error:
            self._notify_once(f"{error}; trying again")
            return False
        job = job_status(found) if found and found["metadata"]["uid"] == self._job.uid else None
        for pod in pods:
            reader = self._readers.get(pod.index)
            if pod.started and pod.name not in self._read and (reader is None or reader.done):
                if reader:
                    self._notify(f"the next attempt: pod {pod.name}")
                self._start_reader(pod)
        running = {pod.name for pod in pods if not pod.ended}
        for each in self._readers.values():
            if each.pod not in running:
                each.ended.set()
        if job and not job.over:
            self._notify_waiting(job, pods)
            return False
        return all(pod.name in self._read or not pod.started for pod in pods)

    def _start_reader(self, pod: PodStatus) -> None:
        self._read.add(pod.name)
        reader = self._readers[pod.index] = _Reader(pod.name)
        if pod.ended:
            reader.ended.set()
        threading.Thread(target=self._follow, args=(pod, reader), name=f"log-{pod.name}", daemon=True).start()

    def _follow(self, pod: PodStatus, reader: _Reader) -> None:
        """Reads until the pod has ended, then once more from the beginning for what a broken connection lost."""
        lines = LineFilter()
        try:
            last = False
            while not last:
                last = reader.ended.is_set()
                try:
                    with self._cluster.log(pod.name, self._job.container, follow=not last) as chunks:
                        for text in lines.read(chunks, complete=last):
                            self._lines.put(LogLine(pod.index, text))
                except NotFoundError:  # the pod was deleted with its log
                    return
                except ClusterError:  # temporarily unavailable
                    last = False
                    time.sleep(POLL_S)
                # The log ends a moment before the pod's state shows it.
                reader.ended.wait(POLL_S)
        except BaseException as error:  # raised by ``lines``
            self._lines.put(error)
        finally:
            reader.done = True

    def _notify_waiting(self, job: JobStatus, pods: Sequence[PodStatus]) -> None:
        """Reports why there is no log, if no pod of the Job runs."""
        waiting = [pod for pod in pods if not pod.ended]
        if any(pod.started for pod in waiting):
            return
        why = "; ".join(f"{pod.name}: {pod.text}{f' ({pod.message})' if pod.message else ''}" for pod in waiting)
        why = why or ("the last one has ended" if pods else job.state)
        self._notify_once(f"waiting for a pod of Job {job.name}: {why}")

    def _notify_once(self, message: str) -> None:
        if message != self._last_message:
            self._last_message = message
            self._notify(message)


# RFC 3339 with up to nine digits of a second: "2026-11-25T14:00:00.12Z text".
_STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", flags=re.DOTALL)
Stamp = tuple[int, int]


class LineFilter:
    """Yields each line of a log once, although the log is read from its beginning any number of times.

    Known lines are skipped by their number. If the log no longer begins as before, because the node has rotated it,
    lines are skipped by their time, up to the latest one seen.
    """

    def __init__(self) -> None:
        self._first = b""
        self._count = 0
        self._latest: Stamp = (0, 0)

    def read(self, chunks: Iterable[bytes], *, complete: bool) -> Iterator[str]:
        """The new lines of one response. An unterminated last line counts only if the log is ``complete``.

        An error of ``chunks`` is raised after the lines before it.
        """
        rotated = False
        for number, line in enumerate(_lines(chunks, complete=complete), start=1):
            if number == 1:
                rotated = bool(self._count) and line != self._first
                if rotated:
                    self._count = 0
                self._first = line
            stamp, text = _parse(line)
            # A line without a time is the node's message that the log is gone with its container.
            if rotated and (stamp is None or stamp <= self._latest):
                self._count = number
            elif number > self._count:
                rotated = False
                self._count = number
                self._latest = max(self._latest, stamp or self._latest)
                yield text


def _lines(chunks: Iterable[bytes], *, complete: bool) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest and complete:
        yield rest


def _parse(line: bytes) -> tuple[Stamp | None, str]:
    """The time, in whole seconds and nanoseconds, and the text; no time for a message of the node itself."""
    found = _STAMPED.fullmatch(line)
    if not found:
        return None, line.decode(errors="replace")
    zone = found[3].decode().replace("Z", "+00:00")
    seconds = datetime.fromisoformat(found[1].decode() + zone).timestamp()
    return (int(seconds), int((found[2] or b"0").ljust(9, b"0"))), found[4].decode(errors="replace")
