from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cnn_jobs.data import s3
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError, DiskFullError, RemoteDataError, StateDirError
from tests.helpers.datasets import Images, put, small_dataset
from tests.helpers.servers import sending

integration = pytest.mark.integration


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_prepared(small_dataset(), tmp_path / "x.npz", compressed=True)
    return tmp_path / "x.npz"


def rejected(uri: str, message: str) -> str:
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
    with pytest.raises(StateDirError, match="cannot be written"):  # no network error
        open_dataset(uri, cache_dir=prepared)


@integration
def test_a_zip_of_images_is_opened(bucket: str, write_zip: Callable[..., Path], images: Images) -> None:
    archive = write_zip(images)
    uri = put(bucket, "animals.zip", archive)
    dataset = open_dataset(uri)
    assert dataset.digest == open_dataset(str(archive)).digest
    assert (dataset.name, dataset.uri) == ("animals", uri)


@integration
def test_each_version_of_an_object_is_downloaded_once(bucket: str, prepared: Path, cache_dir: Path) -> None:
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
def test_a_damaged_object_is_rejected_and_not_kept(bucket: str, prepared: Path, cache_dir: Path) -> None:
    prepared.write_bytes(prepared.read_bytes()[:-40])
    uri = put(bucket, "x.npz", prepared)
    rejected(uri, f"^{uri}: damaged, or no prepared file")
    assert not list(cache_dir.iterdir())


@integration
@pytest.mark.parametrize("place", ["{bucket}/none.npz", "no-such-bucket/x.npz"])
def test_a_missing_bucket_or_key_is_rejected(bucket: str, place: str) -> None:
    uri = f"s3://{place.format(bucket=bucket)}"
    rejected(uri, f"^{uri}: no such bucket or key .*check the URI and http://127.0.0.1:")


@integration
def test_an_uploaded_object_has_the_digest_as_metadata(bucket: str, prepared: Path) -> None:
    uri = f"s3://{bucket}/x.npz"
    assert s3.head(uri) is None
    s3.upload(prepared, uri, "ab" * 32)
    found = s3.head(uri)
    assert found is not None
    assert found.digest == "ab" * 32
    assert open_dataset(uri).digest == small_dataset().digest
    with pytest.raises(DataError, match="no such bucket or key"):
        s3.upload(prepared, "s3://no-such-bucket/x.npz", "ab" * 32)


@integration
def test_mlflows_endpoint_is_used_if_those_of_aws_are_unset(
    bucket: str, prepared: Path, moto_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(bucket, "x.npz", prepared)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", moto_server)
    assert open_dataset(uri).digest == small_dataset().digest
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert s3.make_client().meta.endpoint_url == "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_server.replace("http://", "http://user:hunter2@"))
    assert "hunter2" not in rejected("s3://no-such-bucket/x.npz", f"404.; check the URI and {moto_server}$")


@integration
def test_a_full_cache_is_no_network_error(bucket: str, prepared: Path, small_disk: Path) -> None:
    write_prepared(small_dataset(train=3000), prepared, compressed=True)
    uri = put(bucket, "x.npz", prepared)
    with pytest.raises(DiskFullError, match="no space left"):
        open_dataset(uri, cache_dir=small_disk)
    assert not list(small_disk.iterdir())


@integration
def test_wrong_credentials_are_no_transient_error(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with sending(lambda path: (403, b"")) as (url, methods):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        rejected("s3://bucket/x.npz", "^s3://bucket/x.npz: access denied .*check AWS_ACCESS_KEY_ID")
        assert methods == ["HEAD"]


@integration
def test_a_failing_server_gets_three_requests_and_the_error_is_transient(
    aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sending(lambda path: (503, b"")) as (url, methods):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(RemoteDataError, match="the server failed with 503") as caught:
            open_dataset("s3://bucket/x.npz")
        assert methods == ["HEAD"] * 3
    assert caught.value.exit_code == 1


@integration
def test_an_interrupted_download_leaves_no_file(aws: None, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    with sending(lambda path: (200, b"PK\3\4 only the beginning"), length=1000) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(RemoteDataError, match=r"s3://bucket/x.npz: .*check the endpoint and the network") as caught:
            open_dataset("s3://bucket/x.npz")
    assert "\n" not in str(caught.value)
    assert not list(cache_dir.iterdir())


@integration
def test_an_unreachable_server_is_a_transient_error(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with sending(lambda path: (200, b"")) as (url, _):
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(RemoteDataError, match="Could not connect to the endpoint") as caught:
        open_dataset("s3://bucket/x.npz")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_an_error_in_one_line(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    rejected("s3://bucket/x.npz", "s3://bucket/x.npz: no credentials .*set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket", "neither .npz nor .zip|has no key"),
        ("s3:///x.npz", "has no bucket; the form is s3://bucket/key"),
        ("s3://bucket/x.csv", "s3://bucket/x.csv: is neither .npz nor .zip; --data takes"),
        ("s3://not a bucket/x.npz", "check the URI"),
    ],
)
def test_a_uri_of_another_form_is_rejected(aws: None, uri: str, message: str) -> None:
    rejected(uri, message)


@pytest.mark.parametrize("uri", ["s3://key:hunter2@bucket/x.npz", "s3://key:hunter2@bucket/x.csv"])
def test_credentials_in_a_uri_are_not_repeated(uri: str) -> None:
    assert "hunter2" not in rejected(uri, "credentials do not belong in a URI; set AWS_ACCESS_KEY_ID")


def test_an_endpoint_that_is_no_url_is_rejected(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "nowhere")
    rejected("s3://bucket/x.npz", "Invalid endpoint.*check the URI and the AWS_ variables")
