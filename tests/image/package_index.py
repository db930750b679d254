"""Empty wheels in the layout of PyTorch's package index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


def wheel(folder: Path, name: str, version: str, platform: str) -> str:
    """Writes an empty wheel and its index page; returns its digest."""
    escaped = version.replace("+", "%2B")
    path = folder / f"{name}-{version}-cp311-cp311-{platform}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: six\n"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-{platform}\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    page = folder / name
    page.mkdir(exist_ok=True)
    link = f"{name}-{escaped}-cp311-cp311-{platform}.whl"
    with (page / "index.html").open("a") as out:
        out.write(f'<a href="../{link}#sha256={digest}">{path.name}</a><br/>\n')
    return digest
