"""Artifacts waiting for upload, each in a separate file that later writes do not change."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cnn_jobs.errors import from_os_error
from cnn_jobs.system.files import link_or_copy, sha256_of


class Outbox:
    """``outbox/`` of a run's folder. Its files are links to files elsewhere in that folder, whose newest version stays
    there."""

    def __init__(self, run_folder: Path) -> None:
        self._root = run_folder
        self._folder = run_folder / "outbox"

    def stage(self, source: Path, to: str, *, passing: bool = False) -> Iterator[dict[str, Any]]:
        """Stages a file, or every file of a folder, for upload to ``to``; yields a journal content for each.

        ``passing``: a newer version will follow, so that nothing is lost if this one can no longer be sent.
        """
        if source.is_dir():
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                to_path = f"{to}/{path.relative_to(source).as_posix()}".lstrip("/")
                yield {**self._stage_file(path, to_path), "passing": passing}
        else:
            yield {**self._stage_file(source, to), "passing": passing}

    def _stage_file(self, source: Path, to: str) -> dict[str, Any]:
        # In a separate folder: MLflow names an artifact after its file.
        ticket = uuid.uuid4().hex[:12]
        staged = self._folder / ticket / Path(to).name
        try:
            staged.parent.mkdir(parents=True)
            link_or_copy(source, staged)
            size, digest = staged.stat().st_size, sha256_of(staged)
        except OSError as error:
            shutil.rmtree(staged.parent, ignore_errors=True)
            raise from_os_error(error, staged) from error
        kept = source.relative_to(self._root).as_posix()
        return {"to": to, "ticket": ticket, "source": kept, "size": size, "sha256": digest}

    def find(self, content: Mapping[str, Any]) -> Path | None:
        """The file of a record, with the bytes that were staged; ``None`` where they are gone."""
        staged = self._folder / str(content["ticket"]) / Path(str(content["to"])).name
        if _is_intact(staged, content):
            return staged
        source = self._root / str(content["source"])
        if not _is_intact(source, content):
            return None
        # Staged again, under the artifact's name and out of reach of later writes.
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)
        link_or_copy(source, staged)
        return staged if _is_intact(staged, content) else None

    def sweep(self, recorded: Iterable[Mapping[str, Any]]) -> None:
        """Removes files that were staged but, because of a kill, not recorded."""
        tickets = {str(content["ticket"]) for content in recorded}
        for path in self._folder.glob("*"):
            if path.name not in tickets:
                shutil.rmtree(path, ignore_errors=True)

    def discard(self, content: Mapping[str, Any]) -> None:
        """Removes a staged file that was acknowledged, or replaced by a newer version."""
        shutil.rmtree(self._folder / str(content["ticket"]), ignore_errors=True)


def _is_intact(path: Path, content: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == content["size"] and sha256_of(path) == content["sha256"]
