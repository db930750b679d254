"""Files in an S3 bucket, of AWS or of any server that speaks its protocol."""

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

from cnn_jobs.errors import CnnJobsError, DataError, RemoteDataError
from cnn_jobs.system.files import atomic_file

SCHEME = "s3://"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
ATTEMPTS = 3

_DIGEST = "cnn-jobs-digest"  # what the object's metadata call the digest of the data set in it
_TRY_AGAIN = (408, 412, 429)  # 412: the object was replaced between the look and the download


@dataclass(frozen=True)
class StoredObject:
    """What a bucket says about an object: its version, and the data set's digest where we stored it."""

    etag: str
    digest: str | None


def look(uri: str) -> StoredObject | None:
    """The object that ``uri`` names, None where there is none.

    Raises ``DataError`` (exit 2) for a URI or credentials that can never work, ``RemoteDataError`` (exit 1)
    where the server does not answer.
    """
    bucket, key = split_uri(uri)
    try:
        with _clear_errors(uri):
            head = _client().head_object(Bucket=bucket, Key=key)
    except _NotThereError:
        return None
    return StoredObject(head["ETag"].strip('"'), head["Metadata"].get(_DIGEST))


def download(uri: str, cache_dir: Path) -> tuple[Path, bool]:
    """The object as a file in ``cache_dir``, and whether it came over the network just now.

    An object that the cache has in the same version (ETag) is not downloaded again. Raises as ``look`` does,
    and ``DataError`` where there is no such object.
    """
    bucket, key = split_uri(uri)
    there = look(uri)
    if there is None:
        raise _NotThereError(f"{uri}: no such bucket or key (404); check the URI and {_endpoint()}")
    # The server is part of the name: two of them may have a bucket of the same name.
    name = hashlib.sha256("\0".join((_endpoint(), bucket, key, there.etag)).encode()).hexdigest()
    file = cache_dir / f"s3-{name}{PurePosixPath(key).suffix}"
    if file.exists():
        return file, False
    with atomic_file(file) as partial, _clear_errors(uri), partial.open("wb") as stream:
        body = _client().get_object(Bucket=bucket, Key=key, IfMatch=there.etag)["Body"]
        shutil.copyfileobj(body, stream, length=1 << 20)
    return file, True


def upload(path: Path, uri: str, digest: str) -> None:
    """Put a file at ``uri``, with its data set's digest beside it; the object appears whole or not at all.

    Raises as ``look`` does.
    """
    bucket, key = split_uri(uri)
    with _clear_errors(uri), path.open("rb") as stream:
        _client().put_object(Bucket=bucket, Key=key, Body=stream, Metadata={_DIGEST: digest})


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``. Raises ``DataError``, which never repeats credentials."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if "@" in bucket:
        raise DataError(
            "s3://...@...: credentials do not belong into a URI; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not bucket or not key:
        raise DataError(f"{uri}: has no {'key' if bucket else 'bucket'}; the form is s3://bucket/key")
    return bucket, key


class _NotThereError(DataError):
    """No such bucket or key."""


def endpoint_url() -> str | None:
    """MLflow's variable, which boto3 does not know, where those of AWS are unset."""
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return None
    return os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None


def _client() -> Any:
    import boto3  # late: half a second that no other source need wait
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # Other servers than AWS refuse the checksum trailers that boto3 adds to uploads since 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with _clear_errors("s3"):
        # A session of its own: the one that boto3 keeps would keep the credentials that it saw first.
        return boto3.Session().client("s3", endpoint_url=endpoint_url(), config=config)


def _endpoint() -> str:
    """Scheme, host and port of the server, without a password that its URL may hold."""
    parts = urlsplit(_client().meta.endpoint_url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


@contextmanager
def _clear_errors(uri: str) -> Iterator[None]:
    """One line for whatever boto3 raises: exit 2 where it would be the same next time, else exit 1."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _refused(uri, error.response) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise DataError(f"{uri}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (boto.ParamValidationError, boto.ProfileNotFound, boto.NoRegionError, ValueError) as error:
        raise DataError(f"{uri}: {_one_line(error)}; check the URI and the AWS_ variables") from error
    except (boto.BotoCoreError, ConnectionError, TimeoutError) as error:
        raise RemoteDataError(f"{uri}: {_one_line(error)}; check the endpoint and the network") from error


def _refused(uri: str, response: Any) -> CnnJobsError:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reason = f"{response.get('Error', {}).get('Code', '')} {response.get('Error', {}).get('Message', '')}".strip()
    if status == 404:
        return _NotThereError(f"{uri}: no such bucket or key ({reason}); check the URI and the endpoint")
    if status >= 500 or status in _TRY_AGAIN:
        return RemoteDataError(f"{uri}: the server failed with {status} ({reason}); try again")
    if status in (401, 403):
        return DataError(
            f"{uri}: access denied ({reason}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    return DataError(f"{uri}: refused with {status} ({reason}); check the URI and the AWS_ variables")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
