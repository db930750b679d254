"""The lock files of the images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s/image"
PACKAGES, CUDA, CPU = FOLDER / "packages.txt", FOLDER / "torch-cuda.txt", FOLDER / "torch-cpu.txt"
SERVER = ROOT / "mlflow/requirements.txt"
LOCKS = [path for path in (PACKAGES, CUDA, CPU, SERVER) if path.exists()]


@dataclass(frozen=True)
class Pinned:
    """One package of a lock."""

    name: str
    version: Version
    hashes: tuple[str, ...]


def entries(path: Path) -> list[str]:
    """The joined lines of a lock, without comments."""
    text = path.read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def read(*paths: Path) -> dict[str, Pinned]:
    """Packages by canonical name; fails for a line of another form."""
    found = {}
    for line in [line for path in paths for line in entries(path)]:
        name, version, *hashes = re.split(r"==|\s+", line)
        pinned = Pinned(name, Version(version), tuple(hashes))
        assert canonicalize_name(name) not in found, f"{name} twice"
        found[canonicalize_name(name)] = pinned
    return found
