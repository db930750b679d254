from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, utils

from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError, RemoteDataError, StateDirError

NAMES = ["airplane", "automobile", "bird"]


def pickled(content: dict[str, object]) -> bytes:
    """As Python 2 wrote the real archive: protocol 2, numpy under its old name."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")


@pytest.fixture
def members() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    batches = {
        name: pickled({"data": random.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [number % 3, 2]})
        for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"])
    }
    return {**batches, "batches.meta": pickled({"label_names": NAMES})}


@pytest.fixture
def archive(members: dict[str, bytes], cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny archive of the real layout where the real one would lie; only torchvision's checksums are changed."""
    path = cache_dir / "cifar10" / "cifar-10-python.tar.gz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    def md5(content: bytes) -> str:
        return hashlib.md5(content).hexdigest()

    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path.read_bytes()))
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5(members[n])] for n in members if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(members["test_batch"])]])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5(members["batches.meta"]))
    return path


def test_an_archive_put_there_by_hand_is_read(
    archive: Path, members: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset("cifar10")
    assert dataset.classes == tuple(NAMES)
    assert dataset.train_labels.tolist() == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2]
    second = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)[1]
    assert (dataset.train_images[1].numpy() == second.reshape(3, 32, 32)).all()
    assert dataset.test_images.shape == (2, 3, 32, 32)
    assert (dataset.name, dataset.uri, dataset.synthetic) == ("cifar10", "cifar10", False)
    assert capsys.readouterr().out == ""


def test_the_second_time_the_archive_is_not_needed(archive: Path) -> None:
    first = open_dataset("cifar10")
    archive.unlink()
    for file in (archive.parent / "cifar-10-batches-py").iterdir():
        file.unlink()
    assert open_dataset("cifar10").digest == first.digest


def no_network(reason: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        print("Downloading ...")  # noqa: T201 - as torchvision did until 0.20
        raise reason

    monkeypatch.setattr(utils.urllib.request, "urlopen", fail)


@pytest.mark.parametrize(
    "reason",
    [
        urllib.error.URLError("no route to host"),
        TimeoutError("no route to host"),
        urllib.error.HTTPError("https://x", 403, "no route to host", {}, None),  # type: ignore[arg-type]
    ],
)
def test_without_a_network_the_alternatives_are_named(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: Exception
) -> None:
    no_network(reason, monkeypatch)
    with pytest.raises(RemoteDataError, match=r"^cifar10: cannot be downloaded \(.*no route to host\)") as caught:
        open_dataset("cifar10")
    line = str(caught.value)
    assert "\n" not in line
    assert str(cache_dir / "cifar10" / "cifar-10-python.tar.gz") in line
    assert "data prepare" in line
    assert "ImageFolder" in line
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out == ""


def test_an_archive_that_is_not_the_original_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CIFAR10.meta, "md5", "0" * 32)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is not the original archive .*delete it"):
        open_dataset("cifar10")


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateDirError, match="cannot be written"):
        open_dataset("cifar10", cache_dir=tmp_path / "file")
