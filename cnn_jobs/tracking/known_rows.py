"""What a run holds already, from whatever journal: a row that is there is not sent a second time."""

from __future__ import annotations

from collections.abc import Iterable

from cnn_jobs.tracking.records import Identity, Metric
from cnn_jobs.tracking.remote import Remote, RemoteRun


class KnownRows:
    """The rows of one run, by identity; asked for key by key, when the first row of a key is to be sent.

    On a bad line every answer is kept then: a few dozen histories in one go would never arrive.
    """

    def __init__(self, remote: Remote, run: RemoteRun) -> None:
        self._remote, self._run = remote, run
        self._unread = set(run.metrics)
        self._rows: set[Identity] = set()

    @property
    def unread(self) -> int:
        """Keys of the run whose rows are not known yet."""
        return len(self._unread)

    def has(self, point: Metric) -> bool:
        """Whether the run holds the row. Raises as ``Remote.call``."""
        if point.key in self._unread:
            self._rows |= {row.identity for row in self._remote.history(self._run.run_id, point.key)}
            self._unread.discard(point.key)
        return point.identity in self._rows

    def add(self, identities: Iterable[Identity]) -> None:
        """Notes rows that the server acknowledged."""
        self._rows.update(identities)
