"""How far a journal has been acknowledged, server by server."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from cnn_jobs.files import write_text
from cnn_jobs.tracking.connection import without_password


@dataclass
class Cursor:
    """Every record up to these numbers is acknowledged: ``values`` (metrics, params, tags, data sets), ``artifacts``.

    One that lags behind the truth, as after a SIGKILL, only has records sent again, which changes nothing.
    """

    run_id: str = ""
    values: int = 0
    artifacts: int = 0

    def of(self, run_id: str) -> Cursor:
        """This one if it is of that run, else one at the start."""
        return self if run_id == self.run_id else Cursor(run_id)


class CursorFile:
    """``shipped.json`` of a run's folder, with its own CRC-32: a flipped digit would pass unsent records as sent."""

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / "shipped.json"

    def load(self, uri: str) -> Cursor:
        """The cursor of a server."""
        return self._all().get(without_password(uri), Cursor())

    def save(self, uri: str, cursor: Cursor) -> None:
        """Keeps the cursor of a server. Raises as ``files.whole_file``."""
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
            # Missing or damaged: everything is sent once more, and what the server has is left out.
            return {}


def _crc(cursors: object) -> str:
    return f"{zlib.crc32(json.dumps(cursors, sort_keys=True).encode()):08x}"
