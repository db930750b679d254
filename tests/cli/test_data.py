from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cnn_jobs.cli.data import data
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.shapes import draw_shapes
from cnn_jobs.errors import DataError
from cnn_jobs.models import weights


def test_prepare_prints_the_contents_of_the_file(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("by_variable", [True, False])
def test_verify_prints_the_contents_if_the_digest_is_the_expected_one(by_variable: bool) -> None:
    def verify(digest: str) -> str:
        arguments = ["verify", "shapes"] + ([] if by_variable else ["--digest", digest])
        env = {"CNN_JOBS_DIGEST": digest} if by_variable else {}
        return CliRunner().invoke(data, arguments, env=env, catch_exceptions=False).output

    digest = draw_shapes().digest
    assert f"digest   {digest}\n" in verify(digest[:12])
    with pytest.raises(DataError, match=r"shapes: sha256 .*, expected 00000000; "):
        verify("0" * 64)


def test_stage_prints_each_file_and_whether_it_is_new(
    resnet18_file: Path, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "IMAGENET_SHA256_BEGINS", digest[:8])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    write_prepared(tiny_dataset, tmp_path / "one.npz", compressed=True)
    options = ["stage", "--cifar10-from", str(tmp_path / "one.npz"), "--imagenet-from", str(resnet18_file)]
    cifar10 = f"{tmp_path / 'cache/cifar10.npz'}  sha256 {tiny_dataset.digest[:12]}"
    result = CliRunner().invoke(data, options, catch_exceptions=False)
    assert result.output.splitlines() == [
        f"{cifar10}  staged",
        f"{tmp_path / 'hub/checkpoints' / weights.IMAGENET_FILE}  sha256 {digest[:12]}  staged",
    ]
    only = CliRunner().invoke(data, [*options, "--no-imagenet"], catch_exceptions=False)
    assert only.output.splitlines() == [f"{cifar10}  unchanged"]


def test_errors_are_left_to_the_main_program(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["prepare", "no-such-thing", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2


def test_help_does_not_import_torch() -> None:
    code = "import sys, cnn_jobs.cli.data; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
