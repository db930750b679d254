"""What a run tells MLflow, as plain values: no mlflow import, so that making one costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One point of a metric; ``timestamp_ms`` is when it was measured, and stays so however late it is sent."""

    key: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True)
class Params:
    """Params by name; written once, never changed."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class Tags:
    """Tags by name; a later value replaces an earlier one."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder with all below it, that is to stand in ``folder`` of the run ("" is its root)."""

    path: Path
    folder: str = ""


@dataclass(frozen=True)
class DatasetInput:
    """The data set of the run, for ``log_inputs``. ``digest``: 64 hex digits, of which MLflow holds 36."""

    name: str
    digest: str
    source: str
    profile: Mapping[str, Any]


Record = Metric | Params | Tags | Artifact | DatasetInput


@dataclass(frozen=True)
class RunRequest:
    """The run to make: where, under which name, with which tags, below which parent ("" for none)."""

    experiment: str
    name: str
    tags: Mapping[str, str]
    parent_run_id: str = ""
