from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
import requests

from cnn_jobs.doctor import network, object_store
from cnn_jobs.doctor.finding import Finding
from tests.helpers import servers

XML = {"Content-Type": "application/xml"}


def look(uri: str = "s3://bucket/x.npz") -> Finding:
    finding = object_store.look(uri).finding
    assert "the-secret" not in finding.of("S3").found
    return finding


@pytest.mark.integration
def test_an_existing_object(bucket: str, moto_server: str) -> None:
    metadata = {"cnn-jobs-digest": "ab" * 32}
    boto3.client("s3").put_object(Bucket=bucket, Key="x.npz", Body=b"1" * 2_500_000, Metadata=metadata)
    stored = object_store.look(f"s3://{bucket}/x.npz")
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
