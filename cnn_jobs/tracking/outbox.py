"""Artifacts on their way to MLflow: each a file of its own that no later write changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cnn_jobs.errors import from_os_error

_CHUNK = 1 << 20


class Outbox:
    """``outbox/`` of a run's folder. The files come from elsewhere in that folder, where their newest version stays."""

    def __init__(self, run_folder: Path) -> None:
        self._root = run_folder
        self._folder = run_folder / "outbox"

    def stage(self, source: Path, to: str, *, passing: bool = False) -> Iterator[dict[str, Any]]:
        """Sets a file, or every file of a folder, aside to be sent to ``to``; one journal content for each.

        ``passing``: a newer one will follow, so that nothing is lost where this one cannot be sent any more.
        """
        if source.is_dir():
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                to_path = f"{to}/{path.relative_to(source).as_posix()}".lstrip("/")
                yield {**self._stage_file(path, to_path), "passing": passing}
        else:
            yield {**self._stage_file(source, to), "passing": passing}

    def _stage_file(self, source: Path, to: str) -> dict[str, Any]:
        # A folder for each: MLflow takes an artifact's name from its file.
        ticket = uuid.uuid4().hex[:12]
        staged = self._folder / ticket / Path(to).name
        try:
            staged.parent.mkdir(parents=True)
            _link(source, staged)
            size, digest = staged.stat().st_size, sha256_of(staged)
        except OSError as error:
            shutil.rmtree(staged.parent, ignore_errors=True)
            raise from_os_error(error, staged) from error
        kept = source.relative_to(self._root).as_posix()
        return {"to": to, "ticket": ticket, "source": kept, "size": size, "sha256": digest}

    def find(self, content: Mapping[str, Any]) -> Path | None:
        """The file of a record, its bytes as they were when it was staged; ``None`` where they are gone."""
        staged = self._folder / str(content["ticket"]) / Path(str(content["to"])).name
        if _is_whole(staged, content):
            return staged
        source = self._root / str(content["source"])
        if not _is_whole(source, content):
            return None
        # Staged anew: under the name that it is to have, and out of reach of later writes.
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)
        _link(source, staged)
        return staged if _is_whole(staged, content) else None

    def sweep(self, recorded: Iterable[Mapping[str, Any]]) -> None:
        """Removes what a kill left behind between a file's staging and its record."""
        tickets = {str(content["ticket"]) for content in recorded}
        for path in self._folder.glob("*"):
            if path.name not in tickets:
                shutil.rmtree(path, ignore_errors=True)

    def discard(self, content: Mapping[str, Any]) -> None:
        """Forgets a staged file: acknowledged, or overtaken by a newer one of the same name."""
        shutil.rmtree(self._folder / str(content["ticket"]), ignore_errors=True)


def _link(source: Path, staged: Path) -> None:
    try:
        # Files here are replaced, never written into: the link keeps this version.
        os.link(source, staged)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, staged)


def _is_whole(path: Path, content: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == content["size"] and sha256_of(path) == content["sha256"]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
