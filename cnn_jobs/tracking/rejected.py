"""Records that MLflow refused for good."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jobs.errors import from_os_error


class RejectedRecords:
    """``rejected.jsonl`` of a run's folder: what servers refused, with which answer; ``count`` is of one of them."""

    def __init__(self, run_folder: Path, server: str) -> None:
        self.path = run_folder / "rejected.jsonl"
        self.first_answer = "see there"
        self._server = server
        # A run whose records were refused stays so when another process goes on with it.
        self._known = {_identity(line) for line in self._lines() if line.get("server") == server}

    @property
    def count(self) -> int:
        """Records that this server refused."""
        return len(self._known)

    def summary(self) -> str:
        """One line: how many, where they are, and what MLflow said to the first."""
        return f"MLflow refused {self.count} records, kept in {self.path}: {self.first_answer}"

    def add(self, kind: str, content: Mapping[str, Any], answer: Exception) -> None:
        """Keeps a record with the server's words; once, however often it is refused."""
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
