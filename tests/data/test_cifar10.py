from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, utils

from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError, RemoteDataError, StateDirError
from tests.helpers.datasets import CIFAR10_CLASSES


def test_an_archive_in_the_cache_is_read_once(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = open_dataset("cifar10")
    assert dataset.classes == CIFAR10_CLASSES
    assert dataset.train_labels.tolist() == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2]
    second = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)[1]
    assert (dataset.train_images[1].numpy() == second.reshape(3, 32, 32)).all()
    assert dataset.test_images.shape == (2, 3, 32, 32)
    assert (dataset.name, dataset.uri, dataset.synthetic) == ("cifar10", "cifar10", False)
    archive.unlink()
    for file in (archive.parent / "cifar-10-batches-py").iterdir():
        file.unlink()
    assert open_dataset("cifar10").digest == dataset.digest
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "reason",
    [
        urllib.error.URLError("no route to host"),
        TimeoutError("no route to host"),
        urllib.error.HTTPError("https://x", 403, "no route to host", {}, None),  # type: ignore[arg-type]
    ],
)
def test_without_a_network_the_error_names_the_alternatives(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        print("Downloading ...")  # noqa: T201 - as torchvision did until 0.20
        raise reason

    monkeypatch.setattr(utils.urllib.request, "urlopen", fail)
    with pytest.raises(RemoteDataError, match=r"^cifar10: cannot be downloaded \(.*no route to host\)") as caught:
        open_dataset("cifar10")
    line = str(caught.value)
    assert "\n" not in line
    for part in (str(cache_dir / "cifar10" / "cifar-10-python.tar.gz"), "data prepare", "ImageFolder"):
        assert part in line
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out == ""


def test_an_archive_that_is_not_the_original_is_rejected(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CIFAR10.meta, "md5", "0" * 32)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is not the original archive .*delete it"):
        open_dataset("cifar10")


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateDirError, match="cannot be written"):
        open_dataset("cifar10", cache_dir=tmp_path / "file")
