"""Data and weights in S3: whether they can be read with these keys, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cnn_jobs.data import s3
from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import OK, Finding, failed, from_error, ok
from cnn_jobs.errors import DataError

SCHEME = s3.SCHEME
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
ENDPOINT = "AWS_ENDPOINT_URL"

# S3's error codes, which other servers share: what is wrong, and what to do.
_REFUSALS = {
    "InvalidAccessKeyId": ("it does not know the access key", f"correct {KEYS}: they may be of another server"),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", f"correct {KEYS}"),
    "ExpiredToken": ("the keys have expired", "get new ones, and set AWS_SESSION_TOKEN with them"),
    "InvalidToken": ("the session token is not valid", "get new keys, and set AWS_SESSION_TOKEN with them"),
    "RequestTimeTooSkewed": ("this machine's clock is more than 15 minutes off", "set it by NTP"),
    "AccessDenied": ("these keys may not read it", "allow s3:GetObject on it, and s3:ListBucket on the bucket"),
    "NoSuchBucket": ("there is no such bucket", f"check the bucket's name, and {ENDPOINT}"),
    "NoSuchKey": ("the bucket has no such key", "check the key; 'cnn-jobs data prepare SRC s3://BUCKET/' makes one"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's"),
    "AuthorizationHeaderMalformed": ("the region is wrong", "set AWS_DEFAULT_REGION to the bucket's"),
}
_BY_STATUS = {301: "PermanentRedirect", 403: "AccessDenied", 404: "NoSuchKey"}


@dataclass(frozen=True)
class StoredObject:
    """An object in S3: ``size`` in bytes; ``digest`` of its data set, "" if none is stored beside it."""

    finding: Finding
    size: int = 0
    digest: str = ""

    @property
    def readable(self) -> bool:
        """Whether it can be read."""
        return self.finding.status == OK


def look(uri: str) -> StoredObject:
    """Reads the first byte of the object: unlike HEAD, that returns the reason of a refusal."""
    from botocore import exceptions as boto

    try:
        bucket, key = s3.split_uri(uri)
        client = _client()
    except DataError as error:
        return StoredObject(from_error(error, "the form is s3://bucket/key"))
    except (boto.BotoCoreError, ValueError) as error:
        return StoredObject(failed(f"{uri}: {error}", f"check {ENDPOINT} and the other AWS_ variables"))
    endpoint = str(client.meta.endpoint_url)
    where = network.shown(endpoint)
    try:
        found = client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
    except boto.ClientError as error:
        return StoredObject(_refused(uri, where, error.response))
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        return StoredObject(failed(f"{uri}: no keys for {where} ({error})", f"set {KEYS}"))
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        why, advice = network.diagnose(error, endpoint)
        return StoredObject(failed(f"{uri}: {why}", f"{advice}; {ENDPOINT} names the server"))
    except (boto.BotoCoreError, ValueError) as error:
        return StoredObject(failed(f"{uri}: {error}", "check the URI and the AWS_ variables"))
    size = int(str(found.get("ContentRange", "/0")).rpartition("/")[2])
    digest = found.get("Metadata", {}).get("cnn-jobs-digest", "")
    return StoredObject(ok(f"{uri}: {size / 1e6:.1f} MB at {where}, keys are accepted"), size, digest)


def _client() -> Any:
    """The client of the data room, with shorter timeouts and a single attempt."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=network.CONNECT_S,
        read_timeout=network.ANSWER_S,
        retries={"mode": "standard", "total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.Session().client("s3", endpoint_url=s3.endpoint_url(), config=config)


def _refused(uri: str, where: str, response: Any) -> Finding:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    error = response.get("Error", {})
    code = str(error.get("Code", ""))
    answer = f"{status} {code}: {error.get('Message', '')}".rstrip(": ")
    if code == "InvalidRange":
        return failed(f"{uri} is empty", "stage it again: 'cnn-jobs data prepare'")
    if known := _REFUSALS.get(code) or _REFUSALS.get(_BY_STATUS.get(status, "")):
        return failed(f"{uri}: {known[0]} ({where}: {answer})", known[1])
    if status >= 500:
        return failed(f"{uri}: {where} fails ({answer})", "look at the server's log, or try again later")
    return failed(f"{uri}: {where} refuses it ({answer})", f"check {ENDPOINT} and the bucket's policy")
