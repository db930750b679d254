"""What training pods find on the data volume, and what they say where it is not there."""

from __future__ import annotations

import functools
import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cnn_jobs.cli import cli
from cnn_jobs.data import cifar10
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import RemoteDataError, UserError, WeightsError
from cnn_jobs.models import weights
from cnn_jobs.models.staging import stage_cifar10, stage_imagenet
from tests.conftest import striped_dataset
from tests.data.test_cifar10 import archive, members  # noqa: F401 - fixtures
from tests.helpers.servers import unused_url


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, says nothing."""

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(tmp_path / "volume"))
    return tmp_path / "volume"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "volume/torch/hub"))
    return tmp_path / "volume/torch/hub/checkpoints"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a real server shows it."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def imagenets(resnet18_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as ImageNet's weights: its digest takes the place of the real one's."""
    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "IMAGENET_SHA256_BEGINS", digest[:8])
    return resnet18_file


def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


def test_the_archive_comes_from_a_mirror_also_in_a_pod_and_only_the_file_stays(
    archive: Path,  # noqa: F811
    cache_dir: Path,
    mirror: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, address = mirror
    shutil.move(archive, folder / archive.name)
    in_a_pod(monkeypatch)
    first = stage_cifar10(f"{address}/{archive.name}")
    assert first.fresh
    assert [path.name for path in cache_dir.iterdir()] == ["cifar10.npz"]
    assert open_dataset("cifar10").digest == first.digest  # what a training pod does
    again = stage_cifar10(f"{address}/{archive.name}")
    assert (again.digest, again.fresh) == (first.digest, False)


def test_an_archive_of_another_md5_is_not_staged(
    archive: Path,  # noqa: F811
    cache_dir: Path,
    mirror: tuple[Path, str],
) -> None:
    folder, address = mirror
    archive.unlink()
    (folder / archive.name).write_bytes(b"something else")
    # Another attempt's business: cut off on its way it looks the same.
    with pytest.raises(RemoteDataError, match="sent is not the original archive"):
        stage_cifar10(f"{address}/{archive.name}")
    assert not cifar10.prepared_file(cache_dir).exists()
    assert list((cache_dir / "cifar10").iterdir()) == []


def test_a_mirror_that_is_away_is_another_attempts_business(cache_dir: Path) -> None:
    with pytest.raises(RemoteDataError, match="cannot be downloaded"):
        stage_cifar10(f"{unused_url()}/cifar-10-python.tar.gz")


def test_a_prepared_file_can_be_staged_and_another_data_set_is_not_overwritten(
    cache_dir: Path, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    for name, dataset in (("one", tiny_dataset), ("two", striped_dataset(seed=5))):
        write_prepared(dataset, tmp_path / f"{name}.npz", compressed=True)
    assert stage_cifar10(str(tmp_path / "one.npz")).fresh
    assert not stage_cifar10(str(tmp_path / "one.npz")).fresh
    assert open_dataset("cifar10").digest == tiny_dataset.digest
    with pytest.raises(UserError, match="holds another data set"):
        stage_cifar10(str(tmp_path / "two.npz"))
    assert open_dataset("cifar10").digest == tiny_dataset.digest


def test_weights_come_from_a_mirror_or_a_file_and_their_digest_counts(
    hub: Path,
    cache_dir: Path,
    mirror: tuple[Path, str],
    imagenets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, address = mirror
    in_a_pod(monkeypatch)
    shutil.copy(imagenets, folder / "w.pth")
    staged = stage_imagenet(f"{address}/w.pth")
    assert (staged.path, staged.fresh) == (hub / weights.IMAGENET_FILE, True)
    assert weights.open_weights("imagenet") is not None  # what a training pod does
    assert not stage_imagenet(f"{address}/w.pth").fresh
    staged.path.unlink()
    assert stage_imagenet(str(imagenets)).fresh
    staged.path.unlink()
    other = torch.load(imagenets, weights_only=True)
    other["fc.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="give ImageNet's own file"):
        stage_imagenet(str(tmp_path / "other.pth"))
    shutil.copy(tmp_path / "other.pth", folder / "w.pth")
    with pytest.raises(RemoteDataError, match="cannot be downloaded"):
        stage_imagenet(f"{address}/w.pth")
    assert not staged.path.exists()


def test_a_training_pod_downloads_nothing_and_names_the_job_that_does(
    hub: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_pod(monkeypatch)
    for call in (lambda: open_dataset("cifar10"), lambda: weights.open_weights("imagenet")):
        with pytest.raises(UserError, match=r"kubectl apply -f k8s/prepare-data-job\.yaml") as caught:
            call()
        assert caught.value.exit_code == 2
    monkeypatch.setenv("CNN_JOBS_DOWNLOAD", "1")
    monkeypatch.setattr(cifar10, "CIFAR10_URL", unused_url())
    monkeypatch.setattr(cifar10.open_cifar10, "__kwdefaults__", {"download": True, "url": unused_url()})
    with pytest.raises(RemoteDataError):
        open_dataset("cifar10")


def test_the_command_says_what_lies_where(
    hub: Path, cache_dir: Path, imagenets: Path, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    write_prepared(tiny_dataset, tmp_path / "one.npz", compressed=True)
    options = ["data", "stage", "--cifar10-from", str(tmp_path / "one.npz"), "--imagenet-from", str(imagenets)]
    result = CliRunner().invoke(cli, options, catch_exceptions=False)
    assert result.output.splitlines() == [
        f"{cache_dir / 'cifar10.npz'}  sha256 {tiny_dataset.digest[:12]}  staged",
        f"{hub / weights.IMAGENET_FILE}  sha256 {hashlib.sha256(imagenets.read_bytes()).hexdigest()[:12]}  staged",
    ]
    only = CliRunner().invoke(cli, [*options, "--no-imagenet"], catch_exceptions=False)
    assert only.output.splitlines() == [f"{cache_dir / 'cifar10.npz'}  sha256 {tiny_dataset.digest[:12]}  was there"]
