from __future__ import annotations

import importlib.util
import os
import py_compile
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from cnn_jobs import __version__
from tests.image.locks import FOLDER


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_check", FOLDER / "check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(folder: Path, name: str, *requires: str) -> metadata.Distribution:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {each}" for each in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    return metadata.PathDistribution(info)


@pytest.mark.parametrize(
    ("requires", "found"),
    [
        ("click>=8.1", []),
        ("no-such-package; sys_platform == 'win32'", []),
        ("no-such-package; extra == 'more'", []),
        ("no-such-package>=2", ["thing requires no-such-package>=2, not found"]),
        ("click<1", [f"thing requires click<1, found {metadata.version('click')}"]),
    ],
)
def test_unmet_requirements(check: ModuleType, tmp_path: Path, requires: str, found: list[str]) -> None:
    assert check.unmet(installed(tmp_path, "thing", requires)) == found


def test_stale_bytecode(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "module_of_a_test.py"
    source.write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert check.stale("module_of_a_test")
    py_compile.compile(str(source))
    assert not check.stale("module_of_a_test")
    # As after a copy with another modification time.
    os.utime(source, (1_000_000_000, 1_000_000_000))
    assert check.stale("module_of_a_test")
    del sys.modules["module_of_a_test"]


def test_a_wrong_version_or_variant(check: ModuleType) -> None:
    import torch

    variant, other = ("cuda", "cpu") if torch.version.cuda else ("cpu", "cuda")
    # Other findings depend on the packages of this machine.
    others = set(check.check(__version__, variant))
    assert set(check.check("9.9", other)) - others == {
        f"cnn-jobs is {__version__}, but the label would be 9.9",
        f"torch {torch.__version__} has CUDA {torch.version.cuda}, the variant is {other}",
    }
