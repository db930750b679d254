"""A fake Kubernetes API server for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.kubernetes_api import FakeApi, fake_api


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """The server that ``KUBECONFIG`` names."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with fake_api() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server
