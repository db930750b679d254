"""Installed packages against the versions that cnn-jobs declares."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING

from cnn_jobs.doctor.finding import Finding, failed, ok, skipped
from cnn_jobs.system.environment import version_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.version import Version

PACKAGE = "cnn-jobs"
# Packages that results depend on, listed even if all is well.
SHOWN = ("torch", "torchvision", "mlflow", "numpy")


def check_versions(package: str = PACKAGE) -> Finding:
    """Python and each package are in the range that ``package`` declares."""
    from packaging.specifiers import SpecifierSet

    try:
        declared, metadata = requirements(package), importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return skipped(f"{package} is not installed, only its source exists: no ranges are declared")
    python = metadata["Requires-Python"] or ""
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        return failed(f"python is {platform.python_version()}, but must be {python}", "use another Python")
    wrong = {each: fault for each in declared if (fault := _fault(each))}
    if wrong:
        needed = " ".join(f"'{each.name}{each.specifier}'" for each in wrong)
        return failed("; ".join(wrong.values()), f"pip install {needed}")
    installed = [f"{name} {version}" for name in SHOWN if (version := version_of(name))]
    versions = ", ".join([f"{package} {metadata['Version']}", f"python {platform.python_version()}", *installed])
    return ok(f"{versions}; all {len(declared)} requirements are met")


def lowest_version(name: str, package: str = PACKAGE) -> Version | None:
    """The lowest version of ``name`` that ``package`` accepts; ``None`` if it declares none, or is not installed."""
    from packaging.version import Version

    try:
        declared = requirements(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    parts = [part for each in declared if each.name == name for part in each.specifier]
    return min((Version(part.version) for part in parts if part.operator in (">=", "~=")), default=None)


def requirements(package: str) -> list[Requirement]:
    """Declared requirements, without those of extras and of other systems. Raises ``PackageNotFoundError``."""
    from packaging.requirements import Requirement

    declared = map(Requirement, importlib.metadata.requires(package) or [])
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]


def _fault(required: Requirement) -> str:
    found = version_of(required.name)
    if not found:
        return f"{required.name} is missing"
    if not required.specifier.contains(found, prereleases=True):
        return f"{required.name} {found} is not {required.specifier}"
    return ""
