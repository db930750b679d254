"""The log of a Job: of its pods as they are, or followed from pod to pod until the Job is over."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cnn_jobs.cluster.client import Cluster, NotThereError
from cnn_jobs.cluster.jobs import find_job
from cnn_jobs.cluster.status import JOB_UID, JobFacts, PodFacts, job_facts, pod_facts
from cnn_jobs.errors import ClusterError, UserError

# RFC 3339 with as many digits of a second as there are: "2026-11-25T14:00:00.12Z text".
_STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", flags=re.DOTALL)
Stamp = tuple[int, int]


class LineFilter:
    """Takes the log, whose lines carry their times, from its beginning any number of times; gives each line once.

    Lines are passed over by their number. Where the log does not begin as it did, because the node has rotated it, by
    their times, up to the latest that was given.
    """

    def __init__(self) -> None:
        self._first = b""
        self._given = 0
        self._latest: Stamp = (0, 0)

    def read(self, pieces: Iterable[bytes], *, whole: bool) -> Iterator[str]:
        """The new lines of one answer. A last line without its end counts only if ``whole``: there is no more of it.

        Whatever ``pieces`` raises comes through, after the lines before it.
        """
        position, rotated = 0, False
        for line in _lines(pieces, whole=whole):
            if position == 0:
                rotated = bool(self._given) and line != self._first
                if rotated:
                    self._given = 0
                self._first = line
            position += 1
            stamp, text = _parts(line)
            # Without a time it is the node's word that the log is gone with its container.
            if rotated and (stamp is None or stamp <= self._latest):
                self._given = position
                continue
            if position <= self._given:
                continue
            rotated = False
            self._given = position
            self._latest = max(self._latest, stamp or self._latest)
            yield text


def _lines(pieces: Iterable[bytes], *, whole: bool) -> Iterator[bytes]:
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        yield from lines
    if left and whole:
        yield left


def _parts(line: bytes) -> tuple[Stamp | None, str]:
    """The time, in whole seconds and nanoseconds, and the text; no time of what is a word of the node's own."""
    found = _STAMPED.fullmatch(line)
    if not found:
        return None, line.decode(errors="replace")
    zone = found[3].decode().replace("Z", "+00:00")
    seconds = datetime.fromisoformat(found[1].decode() + zone).timestamp()
    return (int(seconds), int((found[2] or b"0").ljust(9, b"0"))), found[4].decode(errors="replace")


POLL_S = 1.0
Say = Callable[[str], object]


@dataclass(frozen=True)
class Line:
    """A line of a pod's log; ``index``: of its pod, ``None`` in a Job without indexes."""

    index: int | None
    text: str


def choose_job(cluster: Cluster, name: str, index: int | None) -> JobFacts:
    """The Job. Raises ``UserError`` (exit 2) where it is not there or has no such index."""
    job = find_job(cluster, name)
    if index is not None and index >= job.indexes:
        has = f"indexes 0 to {job.indexes - 1}" if job.indexes else "no indexes"
        raise UserError(f"--index is {index}, but Job {name} has {has}")
    return job


def present(cluster: Cluster, job: JobFacts, index: int | None, *, all_attempts: bool) -> Iterator[Line]:
    """What there is now: of each index the last pod, or all of them in their order.

    Raises ``ClusterError`` (exit 1) where no pod has a log yet.
    """
    pods: dict[int | None, list[PodFacts]] = defaultdict(list)
    for pod in _pods(cluster, job, index):
        pods[pod.index].append(pod)
    ready = [each for attempts in pods.values() for each in attempts[0 if all_attempts else -1 :] if each.started]
    if not ready:
        why = "; ".join(f"{attempts[-1].name}: {attempts[-1].text}" for attempts in pods.values()) or job.state
        raise ClusterError(f"Job {job.name} has no log yet ({why}); 'cnn-jobs logs -f {job.name}' waits for it")
    for pod in sorted(ready, key=lambda each: -1 if each.index is None else each.index):
        with cluster.log(pod.name, job.container, follow=False) as pieces:
            for text in LineFilter().read(pieces, whole=True):
                yield Line(pod.index, text)


@dataclass
class _Followed:
    """A pod whose log is being read, by a thread of its own."""

    name: str
    ended: threading.Event = field(default_factory=threading.Event)
    over: bool = False


class Follower:
    """All pods of a Job, attempt after attempt, until the Job is over or gone."""

    def __init__(self, cluster: Cluster, job: JobFacts, index: int | None, say: Say) -> None:
        self._cluster, self._job, self._index, self._say = cluster, job, index, say
        self._lines: queue.SimpleQueue[Line | BaseException] = queue.SimpleQueue()
        self._reading: dict[int | None, _Followed] = {}
        self._seen: set[str] = set()
        self._said = ""

    def lines(self) -> Iterator[Line]:
        """Each line once, as it comes. Raises what a reader of a log met and cannot get over."""
        while True:
            nothing_more = self._look() and all(each.over for each in self._reading.values())
            yield from self._come_in(0.0 if nothing_more else POLL_S)
            if nothing_more:
                return

    def _come_in(self, seconds: float) -> Iterator[Line]:
        """What readers put down within so many seconds, and what they have put down already."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(line, BaseException):
                raise line
            yield line

    def _look(self) -> bool:
        """Starts readers for new pods; whether nothing will come after those that are being read."""
        try:
            # The Job first: a pod that is made after it is over there is none.
            found = self._cluster.job(self._job.name)
            pods = _pods(self._cluster, self._job, self._index)
        except ClusterError as error:
            self._tell(f"{error}; trying again")
            return False
        gone = found is None or found["metadata"]["uid"] != self._job.uid
        state = None if found is None or gone else job_facts(found)
        for pod in pods:
            reading = self._reading.get(pod.index)
            if pod.ended and reading and reading.name == pod.name:
                reading.ended.set()
            if pod.started and pod.name not in self._seen and (reading is None or reading.over):
                self._read(pod)
        for each in self._reading.values():
            if each.name not in {pod.name for pod in pods}:
                each.ended.set()
        unread = [pod for pod in pods if pod.started and pod.name not in self._seen]
        self._tell_why_nothing_comes(pods, state)
        return (gone or (state is not None and state.over)) and not unread

    def _read(self, pod: PodFacts) -> None:
        self._seen.add(pod.name)
        followed = _Followed(pod.name)
        if pod.ended:
            followed.ended.set()
        if self._reading.get(pod.index):
            self._say(f"the next attempt: pod {pod.name}")
        self._reading[pod.index] = followed
        threading.Thread(target=self._follow, args=(pod, followed), name=f"log-{pod.name}", daemon=True).start()

    def _follow(self, pod: PodFacts, followed: _Followed) -> None:
        """Reads until the pod has ended, and then once more from the beginning: what a broken connection lost."""
        lines = LineFilter()
        try:
            last = False
            while not last:
                last = followed.ended.is_set()
                try:
                    with self._cluster.log(pod.name, self._job.container, follow=not last) as pieces:
                        for text in lines.read(pieces, whole=last):
                            self._lines.put(Line(pod.index, text))
                except NotThereError:  # deleted, and its log with it
                    return
                except ClusterError:  # away for a moment
                    last = False
                    time.sleep(POLL_S)
                # The log ends a moment before the pod's state says so.
                followed.ended.wait(POLL_S)
        except BaseException as error:  # raised where the lines are printed
            self._lines.put(error)
        finally:
            followed.over = True

    def _tell_why_nothing_comes(self, pods: Sequence[PodFacts], state: JobFacts | None) -> None:
        waiting = [pod for pod in pods if not pod.started and not pod.ended]
        if state is None or state.over or len(waiting) < len([pod for pod in pods if not pod.ended]):
            return
        why = "; ".join(f"{pod.name}: {pod.text}{f' ({pod.message})' if pod.message else ''}" for pod in waiting)
        why = why or ("the last one has ended" if pods else state.state)
        self._tell(f"waiting for a pod of Job {state.name}: {why}")

    def _tell(self, text: str) -> None:
        """Once, until it changes."""
        if text != self._said:
            self._said = text
            self._say(text)


def _pods(cluster: Cluster, job: JobFacts, index: int | None) -> list[PodFacts]:
    pods = [pod_facts(each, job.container) for each in cluster.pods(f"{JOB_UID}={job.uid}")]
    return [pod for pod in pods if index is None or pod.index == index]
