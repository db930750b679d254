"""Objects in a bucket of AWS S3 or of another server with its protocol."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cnn_jobs.errors import CnnJobsError, DataError, RemoteDataError, one_line
from cnn_jobs.system.files import atomic_file

SCHEME = "s3://"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
ATTEMPTS = 3
# The key under which an object's metadata hold the digest of its data set.
DIGEST_KEY = "cnn-jobs-digest"

_TRY_AGAIN = (408, 412, 429)  # 412: the object was replaced after its ETag was read


@dataclass(frozen=True)
class ObjectHead:
    """Metadata of an object: its version (ETag), and the digest of its data set, ``None`` if none is stored."""

    etag: str
    digest: str | None


def head(uri: str) -> ObjectHead | None:
    """The metadata of an object, ``None`` if there is no such object.

    Raises ``DataError`` (exit 2) for a URI or credentials that can never work, ``RemoteDataError`` (exit 1) if the
    server does not answer.
    """
    bucket, key = split_uri(uri)
    try:
        with _translated_errors(uri):
            found = make_client().head_object(Bucket=bucket, Key=key)
    except _NotFoundError:
        return None
    return ObjectHead(found["ETag"].strip('"'), found["Metadata"].get(DIGEST_KEY))


def download(uri: str, cache_dir: Path) -> tuple[Path, bool]:
    """The object as a file in ``cache_dir``, and whether it was downloaded by this call.

    A version of the object that the cache has is not downloaded again. Raises as ``head``, and ``DataError`` if there
    is no such object.
    """
    bucket, key = split_uri(uri)
    found = head(uri)
    client = make_client()
    endpoint = _without_credentials(client.meta.endpoint_url)
    if found is None:
        raise _NotFoundError(f"{uri}: no such bucket or key (404); check the URI and {endpoint}")
    # The server is part of the name: two servers may have buckets of the same name.
    name = hashlib.sha256("\0".join((endpoint, bucket, key, found.etag)).encode()).hexdigest()
    file = cache_dir / f"s3-{name}{PurePosixPath(key).suffix}"
    if file.exists():
        return file, False
    with atomic_file(file) as partial, _translated_errors(uri), partial.open("wb") as stream:
        body = client.get_object(Bucket=bucket, Key=key, IfMatch=found.etag)["Body"]
        shutil.copyfileobj(body, stream, length=1 << 20)
    return file, True


def upload(path: Path, uri: str, digest: str) -> None:
    """Uploads a file, with the digest of its data set as metadata; the object appears whole or not at all.

    Raises as ``head``.
    """
    bucket, key = split_uri(uri)
    with _translated_errors(uri), path.open("rb") as stream:
        make_client().put_object(Bucket=bucket, Key=key, Body=stream, Metadata={DIGEST_KEY: digest})


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``. Raises ``DataError``, which does not repeat credentials."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if "@" in bucket:
        raise DataError(
            "s3://...@...: credentials do not belong in a URI; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not bucket or not key:
        raise DataError(f"{uri}: has no {'key' if bucket else 'bucket'}; the form is s3://bucket/key")
    return bucket, key


def make_client(
    connect_timeout_s: float = CONNECT_TIMEOUT_S, read_timeout_s: float = READ_TIMEOUT_S, attempts: int = ATTEMPTS
) -> Any:
    """A boto3 client of AWS, or of the server that ``AWS_ENDPOINT_URL`` or MLflow's variable names.

    Raises what boto3 raises.
    """
    import boto3  # takes half a second that other sources need not wait
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Other servers than AWS reject the checksum trailers that boto3 adds to uploads since 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A new session: boto3's default session would keep the first credentials that it read.
    return boto3.Session().client("s3", endpoint_url=_endpoint_url(), config=config)


def _endpoint_url() -> str | None:
    """MLflow's variable, which boto3 does not know, if those of AWS are unset."""
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return None
    return os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


class _NotFoundError(DataError):
    """No such bucket or key."""


@contextmanager
def _translated_errors(uri: str) -> Iterator[None]:
    """One line for any error of boto3: exit 2 if it would occur again, otherwise exit 1."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _refusal(uri, error.response) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise DataError(f"{uri}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (boto.ParamValidationError, boto.ProfileNotFound, boto.NoRegionError, ValueError) as error:
        raise DataError(f"{uri}: {one_line(error)}; check the URI and the AWS_ variables") from error
    except (boto.BotoCoreError, ConnectionError, TimeoutError) as error:
        raise RemoteDataError(f"{uri}: {one_line(error)}; check the endpoint and the network") from error


def _refusal(uri: str, response: Any) -> CnnJobsError:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reason = f"{response.get('Error', {}).get('Code', '')} {response.get('Error', {}).get('Message', '')}".strip()
    if status == 404:
        return _NotFoundError(f"{uri}: no such bucket or key ({reason}); check the URI and the endpoint")
    if status >= 500 or status in _TRY_AGAIN:
        return RemoteDataError(f"{uri}: the server failed with {status} ({reason}); try again")
    if status in (401, 403):
        return DataError(
            f"{uri}: access denied ({reason}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    return DataError(f"{uri}: refused with {status} ({reason}); check the URI and the AWS_ variables")
