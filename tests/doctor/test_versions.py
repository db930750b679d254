"""Distributions with real metadata, made for the test, that ask for what is not there."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from cnn_jobs.doctor.server import check_versions, requirement


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*needs: str, python: str = ">=3") -> str:
        folder = tmp_path / "some_service-1.2.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: some-service", "Version: 1.2", f"Requires-Python: {python}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {each}" for each in needs)]) + "\n")
        return "some-service"

    return make


def test_this_package_has_what_it_asks_for() -> None:
    finding = check_versions()
    assert finding.status == "ok"
    for name in ("torch", "torchvision", "mlflow", "numpy"):
        assert f"{name} {version(name)}" in finding.found
    assert f"python {platform.python_version()}" in finding.found


def test_a_package_outside_its_range_and_one_that_is_missing(asking: Callable[..., str]) -> None:
    finding = check_versions(asking("numpy<1", "no-such-package-anywhere>=2", "click>=8"))
    assert finding.status == "failed"
    assert finding.found == f"numpy {version('numpy')} is not <1; no-such-package-anywhere is missing"
    assert finding.advice == "pip install 'numpy<1' 'no-such-package-anywhere>=2'"


def test_another_python(asking: Callable[..., str]) -> None:
    finding = check_versions(asking(python="<3"))
    assert (finding.status, finding.found) == ("failed", f"python is {platform.python_version()}, but must be <3")


def test_extras_and_other_systems_do_not_count(asking: Callable[..., str]) -> None:
    finding = check_versions(asking('nothing-a; extra == "test"', 'nothing-b; sys_platform == "win32"'))
    assert finding.status == "ok"
    assert "all 0 requirements are met" in finding.found


def test_a_package_that_is_not_installed_declares_nothing() -> None:
    assert check_versions("no-such-package-anywhere").status == "skipped"
    assert requirement("mlflow", "no-such-package-anywhere").lowest is None


def test_the_range_of_a_requirement(asking: Callable[..., str]) -> None:
    package = asking("mlflow>=3.17,<3.18")
    found = requirement("mlflow", package)
    assert (str(found.lowest), set(found.text.split(","))) == ("3.17", {">=3.17", "<3.18"})
    assert requirement("torch", package).lowest is None
