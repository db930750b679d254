"""Settings of the tests of tracking."""

from __future__ import annotations

import pytest

from cnn_jobs.tracking import recorder


@pytest.fixture(autouse=True)
def _quick_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fractions of a second between uploads, and before the first repetition."""
    monkeypatch.setattr(recorder, "UPLOAD_INTERVAL_S", 0.05)
    monkeypatch.setattr(recorder, "FIRST_PAUSE_S", 0.05)
