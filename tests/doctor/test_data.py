"""Data sets and weights that are complete, missing, damaged or in a bucket; nothing is downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import requests
import torch
from torchvision.datasets import CIFAR10

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.doctor import data, network
from cnn_jobs.doctor.data import StoredObject
from cnn_jobs.doctor.finding import Finding, failed, ok
from cnn_jobs.models import weights
from tests.helpers import servers


@pytest.fixture
def prepared(tiny_dataset: Dataset, tmp_path: Path) -> Path:
    write_prepared(tiny_dataset, tmp_path / "small.npz", compressed=False)
    return tmp_path / "small.npz"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{servers.unused()}")


def test_a_prepared_file(prepared: Path, tiny_dataset: Dataset) -> None:
    finding = data.check_data(str(prepared), None)
    assert finding.status == "ok"
    assert finding.found == (f"{prepared}: 40 + 12 images of 16x16 in 3 classes, sha256 {tiny_dataset.digest[:12]}")


def test_generated_data_is_called_synthetic() -> None:
    assert "synthetic" in data.check_data("shapes", None).found


def test_a_damaged_file(prepared: Path) -> None:
    content = bytearray(prepared.read_bytes())
    content[len(content) // 3] ^= 4
    prepared.write_bytes(content)
    finding = data.check_data(str(prepared), None)
    assert finding.status == "failed"
    assert finding.found.startswith(f"{prepared}: damaged, or no prepared file (")
    assert finding.advice == "delete it and run 'cnn-jobs data prepare'"


def test_a_missing_file(tmp_path: Path) -> None:
    finding = data.check_data(str(tmp_path / "none.npz"), None)
    assert finding.status == "failed"
    assert finding.found.endswith("no such file or directory")
    assert "--data takes" in finding.advice


def test_missing_cifar10_that_cannot_be_downloaded(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = data.check_data("cifar10", None)
    assert finding.status == "failed"
    for name in ("cifar10.npz", "cifar-10-batches-py", "cifar-10-python.tar.gz"):
        assert name in finding.found
    assert "cannot be downloaded" in finding.found
    assert "cnn-jobs data prepare" in finding.advice
    assert "--data" in finding.advice
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "kubectl apply -f k8s/prepare-data-job.yaml" in data.check_data("cifar10", None).advice


def test_missing_cifar10_is_not_downloaded(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.silent() as where:
        monkeypatch.setattr(CIFAR10, "url", f"https://{where}/cifar-10-python.tar.gz")
        finding = data.check_data("cifar10", None)
    assert finding.status == "warning"
    assert f"{where} can be reached" in finding.found
    assert "train downloads it" in finding.advice
    assert not cache_dir.exists()


def test_the_archive_of_cifar10(archive: Path) -> None:
    finding = data.check_data("cifar10", None)
    assert (finding.status, finding.found) == ("ok", f"{archive} is the original by its MD5; train unpacks it")
    archive.write_bytes(archive.read_bytes()[:-5])
    finding = data.check_data("cifar10", None)
    assert (finding.status, finding.advice) == ("failed", "delete it")
    assert f"{archive} is not the original archive" in finding.found
    assert archive.exists()


def test_cifar10_unpacked_and_prepared(archive: Path, cache_dir: Path) -> None:
    from cnn_jobs.data.sources import open_dataset

    digest = open_dataset("cifar10").digest
    found = data.check_data("cifar10", None)
    assert found.status == "ok"
    assert found.found.endswith(f"sha256 {digest[:12]}, from {cache_dir / 'cifar10.npz'}")
    (cache_dir / "cifar10.npz").write_bytes(b"damaged")
    found = data.check_data("cifar10", None)
    assert (found.status, "damaged" in found.found) == ("failed", True)
    assert (cache_dir / "cifar10.npz").read_bytes() == b"damaged"
    (cache_dir / "cifar10.npz").unlink()
    archive.unlink()
    assert data.check_data("cifar10", None).found.endswith(f"from {archive.parent / 'cifar-10-batches-py'}")
    (cache_dir / "cifar10.npz").unlink()
    (archive.parent / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"x")
    found = data.check_data("cifar10", None)
    assert (found.status, found.advice) == ("failed", "delete the folder")


def test_large_objects_in_a_bucket_are_not_downloaded() -> None:
    there = StoredObject(ok("there"), 170_000_000, "ab" * 32)
    finding = data.check_data("s3://bucket/x.npz", there)
    assert (finding.status, "170.0 MB, sha256 abababababab" in finding.found) == ("ok", True)
    assert "no digest" in data.check_data("s3://bucket/x.zip", StoredObject(ok("there"), 170_000_000)).found
    assert data.check_data("s3://bucket/x.npz", StoredObject(failed("no", "do"))).status == "skipped"
    assert data.check_weights("s3://bucket/x.pth", StoredObject(failed("no", "do"))).status == "skipped"
    assert "44.7 MB" in data.check_weights("s3://bucket/x.pth", StoredObject(ok("there"), 44_700_000)).found


def test_no_weights_are_requested() -> None:
    assert data.check_weights("", None).status == "skipped"
    assert data.check_weights("none", None).found == "none are requested"


def test_a_weights_file(resnet18_file: Path) -> None:
    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    finding = data.check_weights(str(resnet18_file), None)
    assert (finding.status, f"sha256 {digest[:12]}" in finding.found) == ("ok", True)


def test_missing_or_invalid_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    finding = data.check_weights(str(tmp_path / "text.pth"), None)
    assert (finding.status, "is no file of weights" in finding.found) == ("failed", True)
    assert data.check_weights(str(tmp_path / "none.pth"), None).status == "failed"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints" / weights.IMAGENET_FILE


def test_missing_imagenet_weights(hub: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = data.check_weights("imagenet", None)
    assert finding.status == "failed"
    assert finding.found.startswith(f"{hub} does not exist, and cannot be downloaded: ")
    assert "--weights PATH" in finding.advice
    with servers.silent() as where:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{where}")
        finding = data.check_weights("imagenet", None)
    assert (finding.status, "download.pytorch.org:443 can be reached" in finding.found) == ("warning", True)
    assert not hub.parent.exists()


def test_the_digest_of_imagenet_weights(hub: Path, resnet18_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_bytes(resnet18_file.read_bytes())
    digest = hashlib.sha256(hub.read_bytes()).hexdigest()
    finding = data.check_weights("imagenet", None)
    assert finding.status == "failed"
    assert finding.found == f"{hub}: sha256 {digest[:8]}, expected f37072fd"
    assert finding.advice == "delete it, then it is downloaded again"
    monkeypatch.setattr(weights, "IMAGENET_SHA256_BEGINS", digest[:8])
    assert data.check_weights("imagenet", None).found == f"imagenet: imagenet, sha256 {digest[:12]}, of a ResNet18"


def test_an_invalid_uri_does_not_show_its_password() -> None:
    finding = data.check_data("ftp://user:hunter2@host/x", None)
    assert finding.status == "failed"
    assert "hunter2" not in finding.found


XML = {"Content-Type": "application/xml"}


def look(uri: str = "s3://bucket/x.npz") -> Finding:
    finding = data.look_up(uri).finding
    assert "the-secret" not in finding.of("S3").found
    return finding


@pytest.mark.integration
def test_an_existing_object(bucket: str, moto_server: str) -> None:
    metadata = {"cnn-jobs-digest": "ab" * 32}
    boto3.client("s3").put_object(Bucket=bucket, Key="x.npz", Body=b"1" * 2_500_000, Metadata=metadata)
    stored = data.look_up(f"s3://{bucket}/x.npz")
    assert stored.readable
    assert (stored.size, stored.digest) == (2_500_000, "ab" * 32)
    assert stored.finding.found == f"s3://{bucket}/x.npz: 2.5 MB at {network.shown(moto_server)}, keys are accepted"


@pytest.mark.integration
def test_a_missing_bucket_and_a_missing_key(bucket: str) -> None:
    finding = look(f"s3://{bucket}/none.npz")
    assert (finding.status, "the bucket has no such key" in finding.found) == ("failed", True)
    finding = look("s3://no-such-bucket-at-all/x.npz")
    assert (finding.status, "there is no such bucket" in finding.found) == ("failed", True)


@pytest.mark.integration
def test_an_empty_object(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="x.npz", Body=b"")
    assert look(f"s3://{bucket}/x.npz").found == f"s3://{bucket}/x.npz is empty"


@pytest.fixture
def checking(bucket: str, moto_server: str) -> Iterator[str]:
    """A bucket whose server checks keys; the ``AWS_`` variables have the keys of a user without permissions."""
    iam = boto3.client("iam", region_name="us-east-1")
    iam.create_user(UserName="nobody")
    keys = iam.create_access_key(UserName="nobody")["AccessKey"]
    requests.post(f"{moto_server}/moto-api/reset-auth", data=b"0", timeout=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        yield bucket
    requests.post(f"{moto_server}/moto-api/reset-auth", data=b"inf", timeout=10)
    iam.delete_access_key(UserName="nobody", AccessKeyId=keys["AccessKeyId"])
    iam.delete_user(UserName="nobody")


@pytest.mark.integration
def test_refused_keys(checking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{checking}/x.npz"
    finding = look(uri)
    assert (finding.status, "these keys may not read it" in finding.found) == ("failed", True)
    assert "s3:GetObject" in finding.advice
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    finding = look(uri)
    assert (finding.status, "the secret key does not fit" in finding.found) == ("failed", True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWNUNKNOWN00")
    finding = look(uri)
    assert (finding.status, "it does not know the access key" in finding.found) == ("failed", True)


def test_no_keys(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    finding = look()
    assert (finding.status, "no keys for 127.0.0.1:9" in finding.found) == ("failed", True)
    assert finding.advice == "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"])
def test_an_endpoint_without_a_server(aws: None, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    where = servers.unused()
    monkeypatch.setenv(variable, f"http://{where}")
    finding = look()
    assert (finding.status, f"{where} refuses the connection" in finding.found) == ("failed", True)
    assert "AWS_ENDPOINT_URL" in finding.advice


def test_an_endpoint_that_never_answers(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 0.5)
    with servers.silent() as where:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{where}")
        finding = look()
    assert (finding.status, f"{where} accepts connections, but" in finding.found) == ("failed", True)


def test_an_unknown_host_name(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    assert "the name 'no-such-host.invalid' cannot be resolved" in look().found


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "RequestTimeTooSkewed", "clock is more than 15 minutes off"),
        (400, "ExpiredToken", "the keys have expired"),
        (400, "AuthorizationHeaderMalformed", "the region is wrong"),
        (503, "SlowDown", "fails (503 SlowDown"),
        (418, "Teapot", "refuses it (418 Teapot"),
    ],
)
def test_error_codes_of_s3(aws: None, monkeypatch: pytest.MonkeyPatch, status: int, code: str, words: str) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>message</Message></Error>"
    asked: list[str] = []

    def reply(path: str) -> servers.Reply:
        asked.append(path)
        return status, body, XML

    with servers.speaking(reply) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        finding = look()
    assert len(asked) == 1
    assert (finding.status, words in finding.found) == ("failed", True), finding.found
    assert finding.advice


def test_another_kind_of_server(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.speaking(lambda path: (404, "<html>nginx</html>", {"Content-Type": "text/html"})) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert look().status == "failed"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket", "has no key"),
        ("s3://key:hunter2@bucket/x.npz", "credentials do not belong in a URI"),
        ("s3://not a bucket/x.npz", "not a bucket"),
    ],
)
def test_an_invalid_uri(aws: None, uri: str, words: str) -> None:
    finding = look(uri)
    assert (finding.status, words in finding.found) == ("failed", True)
    assert "hunter2" not in finding.found


def test_an_invalid_endpoint(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "nowhere")
    finding = look()
    assert (finding.status, "nowhere" in finding.found) == ("failed", True)
    assert "AWS_ENDPOINT_URL" in finding.advice
