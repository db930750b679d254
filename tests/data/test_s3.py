from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from cnn_jobs.data import s3
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError, DiskFullError, RemoteDataError, StateDirError
from tests.data.conftest import Pictures, small_dataset

integration = pytest.mark.integration


def put(bucket: str, key: str, path: Path) -> str:
    boto3.client("s3").upload_file(str(path), bucket, key)
    return f"s3://{bucket}/{key}"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_prepared(small_dataset(), tmp_path / "x.npz", compressed=True)
    return tmp_path / "x.npz"


def refused(uri: str, message: str) -> str:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(uri)
    line = str(caught.value)
    assert "\n" not in line
    assert "the-secret" not in line
    return line


@integration
def test_a_prepared_object_is_opened(bucket: str, prepared: Path) -> None:
    uri = put(bucket, "sets/small.npz", prepared)
    dataset = open_dataset(uri)
    assert dataset.digest == small_dataset().digest
    assert (dataset.name, dataset.uri) == ("small", uri)


@integration
def test_a_zip_of_pictures_is_opened(bucket: str, write_zip: Callable[..., Path], pictures: Pictures) -> None:
    archive = write_zip(pictures)
    uri = put(bucket, "animals.zip", archive)
    dataset = open_dataset(uri)
    assert dataset.digest == open_dataset(str(archive)).digest
    assert (dataset.name, dataset.uri) == ("animals", uri)


@integration
def test_an_object_is_downloaded_once_a_version(bucket: str, prepared: Path, cache_dir: Path) -> None:
    uri = put(bucket, "x.npz", prepared)
    file, fresh = s3.download(uri, cache_dir)
    assert fresh
    assert s3.download(uri, cache_dir) == (file, False)
    write_prepared(small_dataset(seed=1), prepared, compressed=True)
    put(bucket, "x.npz", prepared)
    other, fresh = s3.download(uri, cache_dir)
    assert fresh
    assert other != file
    assert open_dataset(uri).digest == small_dataset(seed=1).digest


@integration
def test_a_damaged_copy_is_downloaded_again(
    bucket: str, prepared: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = put(bucket, "x.npz", prepared)
    file, _ = s3.download(uri, cache_dir)
    file.write_bytes(prepared.read_bytes()[:-40])
    assert open_dataset(uri).digest == small_dataset().digest
    assert file.read_bytes() == prepared.read_bytes()
    assert "the cached copy is damaged and downloaded again" in caplog.text


@integration
def test_a_damaged_object_is_refused_and_not_kept(bucket: str, prepared: Path, cache_dir: Path) -> None:
    prepared.write_bytes(prepared.read_bytes()[:-40])
    uri = put(bucket, "x.npz", prepared)
    refused(uri, f"^{uri}: damaged, or no prepared file")
    assert not list(cache_dir.iterdir())


@integration
@pytest.mark.parametrize("place", ["{bucket}/none.npz", "no-such-bucket/x.npz"])
def test_a_missing_bucket_or_key_is_refused(bucket: str, place: str) -> None:
    uri = f"s3://{place.format(bucket=bucket)}"
    refused(uri, f"^{uri}: no such bucket or key .*check the URI and http://127.0.0.1:")


@integration
def test_what_is_uploaded_carries_the_digest(bucket: str, prepared: Path) -> None:
    uri = f"s3://{bucket}/x.npz"
    assert s3.look(uri) is None
    s3.upload(prepared, uri, "ab" * 32)
    there = s3.look(uri)
    assert there is not None
    assert there.digest == "ab" * 32
    assert open_dataset(uri).digest == small_dataset().digest


@integration
def test_uploading_into_a_missing_bucket_is_refused(bucket: str, prepared: Path) -> None:
    with pytest.raises(DataError, match="no such bucket or key"):
        s3.upload(prepared, "s3://no-such-bucket/x.npz", "ab" * 32)


@integration
def test_mlflows_endpoint_counts_where_those_of_aws_are_unset(
    bucket: str, prepared: Path, moto_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(bucket, "x.npz", prepared)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", moto_server)
    assert open_dataset(uri).digest == small_dataset().digest
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:pass@127.0.0.1:9")
    assert s3._endpoint() == "http://127.0.0.1:9"


@integration
def test_a_cache_that_cannot_be_written_is_not_called_a_network_failure(
    bucket: str, prepared: Path, tmp_path: Path
) -> None:
    uri = put(bucket, "x.npz", prepared)
    with pytest.raises(StateDirError, match="cannot be written"):
        open_dataset(uri, cache_dir=prepared)


@integration
def test_a_full_cache_is_not_called_a_network_failure(bucket: str, prepared: Path, small_disk: Path) -> None:
    write_prepared(small_dataset(train=3000), prepared, compressed=True)
    uri = put(bucket, "x.npz", prepared)
    with pytest.raises(DiskFullError, match="no space left"):
        open_dataset(uri, cache_dir=small_disk)
    assert not list(small_disk.iterdir())


@contextmanager
def server_that_answers(status: int, body: bytes = b"", length: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the methods that it was asked with."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.command)
            self.send_response(status)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(length if length is not None else len(body)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@integration
def test_wrong_credentials_are_refused_for_good(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_that_answers(403) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        refused("s3://bucket/x.npz", "^s3://bucket/x.npz: access denied .*check AWS_ACCESS_KEY_ID")
        assert asked == ["HEAD"]


@integration
def test_a_failing_server_is_asked_three_times_and_may_work_later(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_that_answers(503) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(RemoteDataError, match="the server failed with 503") as caught:
            open_dataset("s3://bucket/x.npz")
        assert asked == ["HEAD"] * 3
    assert caught.value.exit_code == 1


@integration
def test_a_download_that_breaks_off_leaves_nothing(aws: None, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    with server_that_answers(200, b"PK\3\4 only the beginning", length=1000) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(RemoteDataError, match=r"s3://bucket/x.npz: .*check the endpoint and the network") as caught:
            open_dataset("s3://bucket/x.npz")
    assert "\n" not in str(caught.value)
    assert not list(cache_dir.iterdir())


@integration
def test_a_server_that_does_not_answer_may_answer_later(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_that_answers(200) as (url, _):
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(RemoteDataError, match="Could not connect to the endpoint") as caught:
        open_dataset("s3://bucket/x.npz")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_no_credentials_are_said_in_one_line(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    refused("s3://bucket/x.npz", "s3://bucket/x.npz: no credentials .*set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket", "neither .npz nor .zip|has no key"),
        ("s3:///x.npz", "has no bucket; the form is s3://bucket/key"),
        ("s3://bucket/x.csv", "s3://bucket/x.csv: is neither .npz nor .zip; --data takes"),
        ("s3://not a bucket/x.npz", "check the URI"),
    ],
)
def test_a_uri_of_another_form_is_refused(aws: None, uri: str, message: str) -> None:
    refused(uri, message)


@pytest.mark.parametrize("uri", ["s3://key:hunter2@bucket/x.npz", "s3://key:hunter2@bucket/x.csv"])
def test_credentials_in_a_uri_are_not_repeated(uri: str) -> None:
    assert "hunter2" not in refused(uri, "credentials do not belong into a URI; set AWS_ACCESS_KEY_ID")


def test_an_endpoint_that_is_no_url_is_refused(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "nowhere")
    refused("s3://bucket/x.npz", "Invalid endpoint.*check the URI and the AWS_ variables")
