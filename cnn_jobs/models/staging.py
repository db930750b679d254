"""What training pods find on the data volume: CIFAR-10 and the weights of ImageNet, each checked by its digest."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cnn_jobs.data import cifar10, s3
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import default_cache_dir, open_dataset
from cnn_jobs.errors import DataError, UserError, WeightsError
from cnn_jobs.models import weights
from cnn_jobs.system.files import atomic_file

WEB = ("https://", "http://")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staged:
    """A file that lies where training looks for it. ``digest``: SHA-256, 64 hex digits; ``fresh``: made just now."""

    path: Path
    digest: str
    fresh: bool


def stage_cifar10(source: str = "") -> Staged:
    """Puts CIFAR-10 into the cache directory, where ``--data cifar10`` finds it.

    ``source``: "" for its authors' site, the http address of a mirror of their archive, whose MD5 must be theirs, or
    any data set that ``--data`` takes. Raises as ``open_dataset``; ``UserError`` where another data set lies there.
    """
    cache_dir = default_cache_dir()
    file = cifar10.prepared_file(cache_dir)
    fresh = not file.exists()
    if source and not source.startswith(WEB):
        return _stage_prepared(source, file)
    dataset = cifar10.open_cifar10(cache_dir, url=source or cifar10.CIFAR10_URL)
    # The archive and what was unpacked from it, three times the size of the file that is kept.
    shutil.rmtree(cache_dir / "cifar10", ignore_errors=True)
    return Staged(file, dataset.digest, fresh)


def _stage_prepared(source: str, file: Path) -> Staged:
    # In a folder of its own, so that the volume keeps no second copy.
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as folder:
        dataset = open_dataset(source, cache_dir=Path(folder))
    there = _opened(file)
    if there and there.digest != dataset.digest:
        raise UserError(
            f"{file} holds another data set (sha256 {there.digest[:12]}) than {source} ({dataset.digest[:12]}); "
            "delete it, or stage that one"
        )
    if not there:
        write_prepared(dataset, file, compressed=False)
    return Staged(file, dataset.digest, not there)


def _opened(file: Path) -> Dataset | None:
    """What lies there, whole; what is damaged does not count, and is replaced."""
    try:
        return open_dataset(str(file)) if file.exists() else None
    except DataError as error:
        _log.warning("what lies on the volume is damaged and staged again: %s", error)
        return None


def stage_imagenet(source: str = "") -> Staged:
    """Puts the weights of ResNet18 into torch's hub directory, where ``--weights imagenet`` finds them.

    ``source``: "" for torchvision's site, the http address of a mirror, a file or ``s3://bucket/key``; whatever it is,
    their SHA-256 must be the known one. Raises as ``open_weights``.
    """
    path = weights.imagenet_path()
    if path.exists() and not weights.file_digest(path).startswith(weights.IMAGENET_SHA256_BEGINS):
        _log.warning("%s is damaged and staged again", path)
        path.unlink()
    fresh = not path.exists()
    if fresh and source and not source.startswith(WEB):
        _copy_checked(source, path)
    found = weights.open_weights(
        weights.IMAGENET, download=True, url=source if source.startswith(WEB) else weights.IMAGENET_URL
    )
    assert found is not None
    return Staged(path, found.digest, fresh)


def _copy_checked(source: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as folder:
        _copy(source, path, Path(folder))


def _copy(source: str, path: Path, folder: Path) -> None:
    found = weights.open_weights(source, cache_dir=folder)
    if found is None or found.name != weights.IMAGENET:
        digest = found.digest[:8] if found else "none"
        raise WeightsError(
            f"{source}: sha256 {digest}, expected {weights.IMAGENET_SHA256_BEGINS}; give ImageNet's own file"
        )
    # From ``folder``, where it is by now.
    local = s3.download(source, folder)[0] if source.startswith(s3.SCHEME) else Path(source).expanduser()
    with atomic_file(path) as partial:
        shutil.copyfile(local, partial)
