"""How much of a journal a server has: what it acknowledged, which rows it holds, what it refused."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnn_jobs.errors import from_os_error
from cnn_jobs.system.files import write_text
from cnn_jobs.system.redaction import without_password
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.records import Identity, Metric


@dataclass
class Cursor:
    """Numbers up to which every record is acknowledged: ``values`` (metrics, params, tags, data sets), ``artifacts``.

    If a cursor lags behind, as after a SIGKILL, records are sent again, which changes nothing.
    """

    run_id: str = ""
    values: int = 0
    artifacts: int = 0

    def of(self, run_id: str) -> Cursor:
        """This cursor if it belongs to that run, else a new one."""
        return self if run_id == self.run_id else Cursor(run_id)


class CursorFile:
    """``shipped.json`` of a run's folder: a cursor for each server. It has its own CRC-32, because a flipped digit
    would count unsent records as sent."""

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / "shipped.json"

    def load(self, uri: str) -> Cursor:
        """The cursor of a server."""
        return self._all().get(without_password(uri), Cursor())

    def save(self, uri: str, cursor: Cursor) -> None:
        """Writes the cursor of a server. Raises as ``files.atomic_file``."""
        content = {**self._all(), without_password(uri): cursor}
        cursors = {where: asdict(each) for where, each in content.items()}
        write_text(self._path, json.dumps({"cursors": cursors, "crc32": _crc(cursors)}, indent=1) + "\n")

    def highest(self) -> int:
        """The highest number that any server has acknowledged."""
        return max((max(each.values, each.artifacts) for each in self._all().values()), default=0)

    def _all(self) -> dict[str, Cursor]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["crc32"] != _crc(content["cursors"]):
                return {}
            return {str(where): Cursor(**values) for where, values in content["cursors"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Missing or damaged: everything is sent again, and what the server has is left out.
            return {}


def _crc(cursors: object) -> str:
    return f"{zlib.crc32(json.dumps(cursors, sort_keys=True).encode()):08x}"


class KnownRows:
    """The metric rows that a run already holds, by identity, so that none is sent twice.

    A key's history is requested when its first row is about to be sent: over a bad connection each answer is progress,
    while dozens of histories at once would never arrive.
    """

    def __init__(self, client: TrackingClient, run: RemoteRun) -> None:
        self._client, self._run = client, run
        self._unread = set(run.metrics)
        self._rows: set[Identity] = set()

    @property
    def unread(self) -> int:
        """Metrics of the run whose history is yet to be requested."""
        return len(self._unread)

    def has(self, point: Metric) -> bool:
        """Whether the run holds the row. Raises as ``TrackingClient.call``."""
        if point.key in self._unread:
            self._rows |= {row.identity for row in self._client.history(self._run.run_id, point.key)}
            self._unread.discard(point.key)
        return point.identity in self._rows

    def add(self, identities: Iterable[Identity]) -> None:
        """Adds rows that the server acknowledged."""
        self._rows.update(identities)


class RejectedRecords:
    """``rejected.jsonl`` of a run's folder: records that servers refused, with their answers; ``count`` is of one
    server."""

    def __init__(self, run_folder: Path, server: str) -> None:
        self.path = run_folder / "rejected.jsonl"
        self.first_answer = "see there"
        self._server = server
        # They stay refused when another process continues the run.
        self._known = {_identity(line) for line in self._lines() if line.get("server") == server}

    @property
    def count(self) -> int:
        """Number of records that this server refused."""
        return len(self._known)

    def summary(self) -> str:
        """One line: how many, where they are, and the first answer."""
        return f"MLflow refused {self.count} records, kept in {self.path}: {self.first_answer}"

    def add(self, kind: str, content: Mapping[str, Any], answer: Exception) -> None:
        """Keeps a record with the server's answer; once, however often it is refused."""
        line = {"server": self._server, "kind": kind, "content": dict(content), "answer": str(answer)}
        if _identity(line) in self._known:
            return
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise from_os_error(error, self.path) from error
        if not self._known:
            self.first_answer = str(answer)
        self._known.add(_identity(line))

    def _lines(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os_error(error, self.path) from error
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off by a kill
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]


def _identity(line: Mapping[str, Any]) -> str:
    return json.dumps([line.get("kind"), line.get("content")], sort_keys=True)
