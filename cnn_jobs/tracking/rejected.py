"""Records that MLflow refused for good."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jobs.errors import from_os_error


class RejectedRecords:
    """``rejected.jsonl`` of a run's folder: what was refused, and with which answer."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / "rejected.jsonl"
        self.first_answer = "see there"
        # A run whose records were refused stays so when another process goes on with it.
        self.count = len(self.path.read_bytes().splitlines()) if self.path.is_file() else 0

    def summary(self) -> str:
        """One line: how many, where they are, and what MLflow said to the first."""
        return f"MLflow refused {self.count} records, kept in {self.path}: {self.first_answer}"

    def add(self, kind: str, content: Mapping[str, Any], answer: Exception) -> None:
        """Keeps a record with the server's words."""
        line = json.dumps({"kind": kind, "content": dict(content), "answer": str(answer)})
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise from_os_error(error, self.path) from error
        self.count += 1
        if self.count == 1:
            self.first_answer = str(answer)
