"""mlflow/compose.yaml as compose reads it, and its containers as processes of this machine."""

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
    """``${NAME:?message}`` and ``${NAME:-default}``, as the compose specification has them. Raises ``KeyError`` with
    the message where a name is missing or empty."""

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if given.get(name):
            return given[name]
        if sign == ":?":
            raise KeyError(f"{name}: {rest}")
        return str(rest)

    return re.sub(r"\$\{(\w+)(:[?-])([^}]*)\}", value, text)


def services(given: dict[str, str]) -> dict[str, Service]:
    """Every service, with anchors resolved and names replaced."""
    found: dict[str, Service] = yaml.safe_load(interpolate(FILE.read_text(), given))["services"]
    return found


def passwords(folder: Path) -> dict[str, str]:
    """What ``make mlflow/.env`` draws, in a tree of its own."""
    (folder / "mlflow").mkdir(exist_ok=True)
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    # A test is itself run by make.
    env = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    subprocess.run(["make", "mlflow/.env"], cwd=folder, env=env, check=True, capture_output=True, timeout=60)
    return dict(line.split("=", 1) for line in (folder / "mlflow/.env").read_text().splitlines())


def environment(service: Service, home: Path, **replaced: str) -> dict[str, str]:
    """The service's own, and PATH; hosts and /tmp are this machine's."""
    made = {name: str(value).replace("/tmp", str(home)) for name, value in service["environment"].items()}
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": str(home), **made, **replaced}
