"""The Grafana dashboard of ``k8s/monitoring``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "k8s/monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())


def panels() -> Iterator[dict[str, Any]]:
    """The panels without the rows that group them."""
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")
