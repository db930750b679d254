from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cnn_jobs.cli.data import data
from cnn_jobs.data.shapes import draw_shapes
from cnn_jobs.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(tmp_path / "cache"))


def test_prepare_prints_what_the_file_holds(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["prepare", "shapes", str(tmp_path / "out")], catch_exceptions=False)
    digest = draw_shapes().digest
    path = tmp_path / "out" / f"shapes-{digest[:12]}.npz"
    assert path.exists()
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines["uri"] == str(path)
    assert lines["digest"] == digest
    assert lines["classes"].startswith("10 (circle, ring, ")
    assert (lines["train"], lines["test"]) == ("6000 images", "1000 images")
    assert lines["size"] == "32x32 pixels, 21.5 MB in memory"
    assert lines["note"].startswith("synthetic")


def test_verify_prints_and_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = draw_shapes().digest
    result = CliRunner().invoke(data, ["verify", "shapes", "--digest", digest[:12]], catch_exceptions=False)
    assert f"digest   {digest}\n" in result.output
    assert CliRunner().invoke(data, ["verify", "shapes"]).output == result.output


@pytest.mark.parametrize("by_variable", [True, False])
def test_another_digest_is_an_error(by_variable: bool) -> None:
    arguments = ["verify", "shapes"] + ([] if by_variable else ["--digest", "0" * 64])
    env = {"CNN_JOBS_DIGEST": "0" * 64} if by_variable else {}
    with pytest.raises(DataError, match=r"shapes: sha256 .*, expected 00000000; "):
        CliRunner().invoke(data, arguments, env=env, catch_exceptions=False)


def test_errors_are_left_to_the_program(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["prepare", "no-such-thing", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2


def test_the_help_does_not_wait_for_torch() -> None:
    code = "import sys, cnn_jobs.cli.data; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
