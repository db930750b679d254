"""Staging that is cut off or finds damage: what it leaves, and what the next attempt makes of it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import pytest
import torch

from cnn_jobs.data.cifar10 import prepared_file
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError, InterruptedRunError, RemoteDataError
from cnn_jobs.models import weights
from cnn_jobs.models.staging import stage_cifar10, stage_imagenet
from cnn_jobs.system.signals import StopRequest
from tests.data.test_cifar10 import archive, members  # noqa: F401 - fixtures
from tests.helpers.servers import speaking
from tests.test_staging import cache_dir, hub, imagenets, in_a_pod  # noqa: F401 - fixtures


@contextmanager
def cutting_off(content: bytes, times: int) -> Iterator[str]:
    """The address of a server that announces ``content``, and the first ``times`` times sends half of it."""
    left = [times]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            whole = left[0] <= 0
            left[0] -= 1
            self.wfile.write(content if whole else content[: len(content) // 2])
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_archive_that_is_cut_off_is_fetched_again_by_the_next_attempt(
    archive: Path,  # noqa: F811
    cache_dir: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = archive.read_bytes()
    archive.unlink()
    in_a_pod(monkeypatch)
    with cutting_off(content, 2) as address:  # torchvision looks first where the address leads to
        with pytest.raises(RemoteDataError) as caught:
            stage_cifar10(f"{address}/cifar-10-python.tar.gz")
        assert caught.value.exit_code == 1
        assert stage_cifar10(f"{address}/cifar-10-python.tar.gz").fresh
    assert [path.name for path in cache_dir.iterdir()] == ["cifar10.npz"]


def test_weights_that_are_cut_off_leave_nothing_and_are_fetched_again(
    imagenets: Path,  # noqa: F811
    hub: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_a_pod(monkeypatch)
    with cutting_off(imagenets.read_bytes(), 1) as address:
        with pytest.raises(RemoteDataError, match="cannot be downloaded") as caught:
            stage_imagenet(f"{address}/resnet18.pth")
        assert caught.value.exit_code == 1
        assert list(hub.iterdir()) == []
        assert stage_imagenet(f"{address}/resnet18.pth").fresh


def test_a_mirror_without_the_file_is_another_attempts_business(
    archive: Path,  # noqa: F811
    cache_dir: Path,  # noqa: F811
    hub: Path,  # noqa: F811
) -> None:
    archive.unlink()
    with speaking(lambda path: (404, "no such file", {})) as address:
        for stage in (stage_cifar10, stage_imagenet):
            with pytest.raises(RemoteDataError, match="404") as caught:
                stage(f"{address}/here")
            assert caught.value.exit_code == 1
    assert not prepared_file(cache_dir).exists()


@pytest.mark.parametrize("left", ["half an archive", "half a prepared file"])
def test_where_staging_was_killed_a_training_pod_names_the_job_and_asks_no_network(
    left: str,
    archive: Path,  # noqa: F811
    cache_dir: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = archive.read_bytes()
    archive.unlink()
    if left == "half an archive":
        archive.write_bytes(content[: len(content) // 2])
    else:
        prepared_file(cache_dir).write_bytes(b"half")
    in_a_pod(monkeypatch)
    with monkeypatch.context() as sealed:
        sealed.setattr("urllib.request.urlopen", lambda *args, **more: pytest.fail("it asked the network"))
        with pytest.raises(DataError, match=r"kubectl apply -f k8s/prepare-data-job\.yaml") as caught:
            open_dataset("cifar10")
    assert caught.value.exit_code == 2
    with cutting_off(content, 0) as address:
        staged = stage_cifar10(f"{address}/cifar-10-python.tar.gz")
    assert open_dataset("cifar10").digest == staged.digest


def test_damage_on_the_volume_is_staged_again(
    cache_dir: Path,  # noqa: F811
    hub: Path,  # noqa: F811
    imagenets: Path,  # noqa: F811
    tmp_path: Path,
    tiny_dataset: Dataset,
) -> None:
    write_prepared(tiny_dataset, tmp_path / "one.npz", compressed=True)
    for stage, source in ((stage_cifar10, tmp_path / "one.npz"), (stage_imagenet, imagenets)):
        staged = stage(str(source))
        staged.path.write_bytes(staged.path.read_bytes()[:-1000] + bytes(1000))
        again = stage(str(source))
        assert (again.fresh, again.digest) == (True, staged.digest)
        assert not stage(str(source)).fresh
    assert open_dataset("cifar10").digest == tiny_dataset.digest


@pytest.mark.integration
def test_both_come_from_a_bucket_and_nothing_else_stays_on_the_volume(
    cache_dir: Path,  # noqa: F811
    hub: Path,  # noqa: F811
    imagenets: Path,  # noqa: F811
    bucket: str,
    tmp_path: Path,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_prepared(tiny_dataset, tmp_path / "one.npz", compressed=True)
    client = boto3.client("s3")
    client.upload_file(str(tmp_path / "one.npz"), bucket, "cifar10.npz")
    client.upload_file(str(imagenets), bucket, "resnet18.pth")
    in_a_pod(monkeypatch)
    assert stage_cifar10(f"s3://{bucket}/cifar10.npz").digest == tiny_dataset.digest
    assert stage_imagenet(f"s3://{bucket}/resnet18.pth").fresh
    files = sorted(str(path.relative_to(cache_dir)) for path in cache_dir.rglob("*") if path.is_file())
    assert files == ["cifar10.npz", f"torch/hub/checkpoints/{weights.IMAGENET_FILE}"]
    assert open_dataset("cifar10").digest == tiny_dataset.digest
    client.put_object(Bucket=bucket, Key="other.pth", Body=b"something else")
    shutil.rmtree(hub)
    with pytest.raises(weights.WeightsError, match="is no file of weights"):
        stage_imagenet(f"s3://{bucket}/other.pth")
    with pytest.raises(DataError, match="no such bucket or key"):
        stage_cifar10(f"s3://{bucket}/none.npz")


def test_a_signal_while_weights_are_read_is_no_fault_of_theirs(
    resnet18_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 would end the Job for good."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = StopRequest()
    stop.install()

    def load(*args: object, **more: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch, "load", load)
    try:
        with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
            weights.open_weights(str(resnet18_file))
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
