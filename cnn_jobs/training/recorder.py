"""What the loop tells the outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Recorder(Protocol):
    """Takes measurements. Called from the training thread: must return at once and never touch the network."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name at a global optimiser step."""


class NullRecorder:
    """Records nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Drops the values."""


class Recorders:
    """Passes every call on to each of several recorders, in order."""

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name at a global optimiser step."""
        for recorder in self._recorders:
            recorder.metrics(values, step)
