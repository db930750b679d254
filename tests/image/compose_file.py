"""mlflow/compose.yaml as compose reads it, and its containers as local processes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.mlflow_pod import BIN
from tests.image.locks import ROOT

FILE = ROOT / "mlflow/compose.yaml"
Service = dict[str, Any]


def interpolate(text: str, given: dict[str, str]) -> str:
    """Replaces ``${NAME:?message}`` and ``${NAME:-default}`` as in the compose specification. Raises ``KeyError`` with
    the message for a missing or empty name."""

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if given.get(name):
            return given[name]
        if sign == ":?":
            raise KeyError(f"{name}: {rest}")
        return str(rest)

    return re.sub(r"\$\{(\w+)(:[?-])([^}]*)\}", value, text)


def services(given: dict[str, str]) -> dict[str, Service]:
    """All services, with anchors and variables resolved."""
    found: dict[str, Service] = yaml.safe_load(interpolate(FILE.read_text(), given))["services"]
    return found


def passwords(folder: Path) -> dict[str, str]:
    """The passwords that ``make mlflow/.env`` generates in ``folder``."""
    (folder / "mlflow").mkdir(exist_ok=True)
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    # A test is itself run by make.
    env = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    subprocess.run(["make", "mlflow/.env"], cwd=folder, env=env, check=True, capture_output=True, timeout=60)
    return dict(line.split("=", 1) for line in (folder / "mlflow/.env").read_text().splitlines())


def environment(service: Service, home: Path, **replaced: str) -> dict[str, str]:
    """The service's environment and PATH, with ``home`` for /tmp and ``replaced`` values."""
    made = {name: str(value).replace("/tmp", str(home)) for name, value in service["environment"].items()}
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": str(home), **made, **replaced}
