"""Data set and pretrained weights, on this disk or in S3: present, complete, and with the expected digest.

Downloads nothing large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnn_jobs.data import s3
from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import OK, Finding, failed, from_error, ok, skipped, warning
from cnn_jobs.errors import CnnJobsError, DataError
from cnn_jobs.recipe import NO_WEIGHTS
from cnn_jobs.system.environment import STAGE_IN_CLUSTER, in_pod, may_download

if TYPE_CHECKING:
    from cnn_jobs.data.dataset import Dataset

# Only smaller objects are downloaded from S3 to be checked: larger ones take too long.
SMALL_BYTES = 8_000_000
STAGE = (
    "run 'cnn-jobs data prepare cifar10 FOLDER' on a machine with internet and give the file that it makes by --data"
)


def check_data(uri: str, stored: StoredObject | None) -> Finding:
    """The data set can be opened. ``stored``: its object in S3, ``None`` for other URIs."""
    from cnn_jobs.data import cifar10
    from cnn_jobs.data.sources import open_dataset

    if stored is not None:
        if not stored.readable:
            return skipped("it cannot be read from S3")
        if stored.size > SMALL_BYTES:
            digest = f"sha256 {stored.digest[:12]} by its metadata" if stored.digest else "no digest in its metadata"
            return ok(f"{uri}: {stored.size / 1e6:.1f} MB, {digest}; train downloads and checks it")
    try:
        return _check_cifar10() if uri == cifar10.NAME else ok(_describe(open_dataset(uri)))
    except CnnJobsError as error:
        return from_error(error, "see 'cnn-jobs data --help'")


def check_weights(source: str, stored: StoredObject | None) -> Finding:
    """The pretrained weights can be opened; ImageNet's have their digest. ``source`` is "" for a task without any."""
    from cnn_jobs.models import weights

    if source in ("", NO_WEIGHTS):
        return skipped("none are requested" if source else "no --task or --weights requests any")
    if stored is not None:
        if not stored.readable:
            return skipped("they cannot be read from S3")
        if stored.size > SMALL_BYTES:
            return ok(f"{source}: {stored.size / 1e6:.1f} MB; train downloads and checks them")
    if source == weights.IMAGENET and not (path := weights.imagenet_path()).exists():
        return _missing(f"{path} does not exist", weights.IMAGENET_URL, weights.HOW)
    try:
        found = weights.open_weights(source)
    except CnnJobsError as error:
        return from_error(error, weights.HOW)
    assert found is not None
    return ok(f"{source}: {found.name}, sha256 {found.digest[:12]}, of a ResNet18")


def _check_cifar10() -> Finding:
    """In the order in which training looks. Reports damage, where training would delete and download again."""
    from torchvision.datasets import CIFAR10

    from cnn_jobs.data.cifar10 import is_archive, is_unpacked, prepared_file
    from cnn_jobs.data.prepared import read_prepared
    from cnn_jobs.data.sources import default_cache_dir, open_dataset

    prepared, root = prepared_file(default_cache_dir()), default_cache_dir() / "cifar10"
    unpacked, archive = root / CIFAR10.base_folder, root / CIFAR10.filename
    if prepared.exists():
        return ok(f"{_describe(read_prepared(prepared, uri='cifar10'))}, from {prepared}")
    if unpacked.exists() and is_unpacked(root):
        return ok(f"{_describe(open_dataset('cifar10'))}, from {unpacked}")
    if archive.exists():
        if is_archive(root):
            return ok(f"{archive} is the original by its MD5; train unpacks it")
        return failed(f"{archive} is not the original archive (its MD5 is not {CIFAR10.tgz_md5})", "delete it")
    if unpacked.exists():
        return failed(f"{unpacked} is not what the original archive holds (an MD5 differs)", "delete the folder")
    places = f"{prepared}, {unpacked} and {archive}"
    return _missing(f"cifar10 is not on this disk (looked for {places})", CIFAR10.url, STAGE)


def _missing(found: str, url: str, otherwise: str) -> Finding:
    """Something that training would download from ``url``; ``otherwise``: how to get it without, outside of pods."""
    otherwise = STAGE_IN_CLUSTER if in_pod() else otherwise
    if not may_download():
        return failed(f"{found}, and nothing is downloaded here", otherwise)
    if why_not := network.reach(url):
        return failed(f"{found}, and cannot be downloaded: {why_not}", otherwise)
    return warning(
        f"{found}; {network.shown(url)} can be reached",
        f"nothing: train downloads it, which may be slow; or {otherwise}",
    )


def _describe(dataset: Dataset) -> str:
    height, width = dataset.train_images.shape[2:]
    images = f"{len(dataset.train_images)} + {len(dataset.test_images)} images of {width}x{height}"
    kind = ", synthetic" if dataset.synthetic else ""
    return f"{dataset.uri}: {images} in {len(dataset.classes)} classes{kind}, sha256 {dataset.digest[:12]}"


# -- objects in S3 -----------------------------------------------------------------------------------------------------

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


def look_up(uri: str) -> StoredObject:
    """Reads the first byte of the object: unlike HEAD, that returns the reason of a refusal."""
    from botocore import exceptions as boto

    try:
        bucket, key = s3.split_uri(uri)
        client = s3.make_client(network.CONNECT_S, network.ANSWER_S, attempts=1)
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
    digest = found.get("Metadata", {}).get(s3.DIGEST_KEY, "")
    return StoredObject(ok(f"{uri}: {size / 1e6:.1f} MB at {where}, keys are accepted"), size, digest)


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
