from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from cnn_jobs.doctor.versions import check_versions, lowest_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Installs a distribution with these requirements; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*needs: str, python: str = ">=3") -> str:
        folder = tmp_path / "some_service-1.2.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: some-service", "Version: 1.2", f"Requires-Python: {python}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {each}" for each in needs)]) + "\n")
        return "some-service"

    return make


def test_the_requirements_of_this_package_are_met() -> None:
    finding = check_versions()
    assert finding.status == "ok"
    for name in ("torch", "torchvision", "mlflow", "numpy"):
        assert f"{name} {version(name)}" in finding.found
    assert f"python {platform.python_version()}" in finding.found


def test_a_package_outside_its_range_and_a_missing_one(package: Callable[..., str]) -> None:
    finding = check_versions(package("numpy<1", "no-such-package-anywhere>=2", "click>=8"))
    assert finding.status == "failed"
    assert finding.found == f"numpy {version('numpy')} is not <1; no-such-package-anywhere is missing"
    assert finding.advice == "pip install 'numpy<1' 'no-such-package-anywhere>=2'"


def test_another_python(package: Callable[..., str]) -> None:
    finding = check_versions(package(python="<3"))
    assert (finding.status, finding.found) == ("failed", f"python is {platform.python_version()}, but must be <3")


def test_extras_and_other_systems_do_not_count(package: Callable[..., str]) -> None:
    finding = check_versions(package('nothing-a; extra == "test"', 'nothing-b; sys_platform == "win32"'))
    assert finding.status == "ok"
    assert "all 0 requirements are met" in finding.found


def test_a_package_that_is_not_installed() -> None:
    assert check_versions("no-such-package-anywhere").status == "skipped"
    assert lowest_version("mlflow", "no-such-package-anywhere") is None


def test_the_lowest_version(package: Callable[..., str]) -> None:
    name = package("mlflow>=3.17,<3.18")
    assert str(lowest_version("mlflow", name)) == "3.17"
    assert lowest_version("torch", name) is None
