"""What is installed, against what the package itself asks for."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnn_jobs.doctor.finding import Finding, failed, ok, skipped

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.version import Version

PACKAGE = "cnn-jobs"
# What a result depends on, named even when all is well.
SHOWN = ("torch", "torchvision", "mlflow", "numpy")


@dataclass(frozen=True)
class Range:
    """The versions that the package takes; ``lowest``: the least of them, ``None`` where there is no bound."""

    text: str
    lowest: Version | None


def requirement(name: str, package: str = PACKAGE) -> Range:
    """The versions of ``name`` that ``package`` declares; any where it is not installed or declares none."""
    from packaging.version import Version

    try:
        declared = _requirements(package)
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for each in declared:
        if each.name == name:
            bounds = [Version(part.version) for part in each.specifier if part.operator in (">=", "~=")]
            return Range(str(each.specifier), min(bounds, default=None))
    return Range("", None)


def check_versions(package: str = PACKAGE) -> Finding:
    """Every package in the range that ``package`` declares, and Python itself."""
    from packaging.specifiers import SpecifierSet

    try:
        declared, metadata = _requirements(package), importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return skipped(f"{package} is not installed, only its source is there: no ranges are declared")
    python = metadata["Requires-Python"] or ""
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        return failed(f"python is {platform.python_version()}, but must be {python}", "use another Python")
    wrong = {each: line for each in declared if (line := _wrong(each))}
    if wrong:
        needed = " ".join(f"'{each.name}{each.specifier}'" for each in wrong)
        return failed("; ".join(wrong.values()), f"pip install {needed}")
    there = [f"{name} {version}" for name in SHOWN if (version := installed(name))]
    versions = ", ".join([f"{package} {metadata['Version']}", f"python {platform.python_version()}", *there])
    return ok(f"{versions}; all {len(declared)} requirements are met")


def installed(name: str) -> str:
    """The version of a package, "" where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _requirements(package: str) -> list[Requirement]:
    """Without those of extras, and of other systems."""
    from packaging.requirements import Requirement

    declared = map(Requirement, importlib.metadata.requires(package) or [])
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]


def _wrong(required: Requirement) -> str:
    found = installed(required.name)
    if not found:
        return f"{required.name} is missing"
    if not required.specifier.contains(found, prereleases=True):
        return f"{required.name} {found} is not {required.specifier}"
    return ""
