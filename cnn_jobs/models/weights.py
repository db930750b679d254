"""Pretrained weights of ResNet18: opened by name, file or S3 object, checked, and staged for training pods."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch

from cnn_jobs.data import s3
from cnn_jobs.data.sources import WEB, Staged, writable_cache_dir
from cnn_jobs.errors import CnnJobsError, InterruptedRunError, RemoteDataError, WeightsError, one_line
from cnn_jobs.recipe import NO_WEIGHTS
from cnn_jobs.system.environment import STAGE_IN_CLUSTER, download_timeout, may_download
from cnn_jobs.system.files import atomic_file, sha256_of

IMAGENET = "imagenet"
# ResNet18_Weights.IMAGENET1K_V1; the file's name contains the first 8 digits of its SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
IMAGENET_FILE = IMAGENET_URL.rpartition("/")[2]
IMAGENET_SHA256_BEGINS = "f37072fd"
HEAD_FEATURES = 512
# BatchNorm counts its batches since torch 0.4.1; older files lack the counters, and evaluation does not need them.
COUNTERS = ".num_batches_tracked"
HOW = (
    f"give the file by --weights PATH or --weights s3://bucket/key, or put {IMAGENET_FILE} into "
    "$TORCH_HOME/hub/checkpoints"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A state dict of torchvision's ResNet18. ``digest``: SHA-256 (64 hex digits) of its file; ``source``: its URI."""

    source: str
    digest: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def name(self) -> str:
        """``imagenet``, or the first digits of the digest: independent of the place of the file."""
        return IMAGENET if _is_imagenet(self.digest) else f"sha256:{self.digest[:12]}"

    @property
    def has_head(self) -> bool:
        """Whether they include a last layer that fits the layer before it."""
        weight, bias = (self.tensors.get(name, torch.empty(0)) for name in ("fc.weight", "fc.bias"))
        return weight.shape[1:] == (HEAD_FEATURES,) and bias.shape == weight.shape[:1]


def open_weights(source: str) -> Weights | None:
    """``imagenet``, a path or ``s3://bucket/key``; ``None`` for ``none``.

    Raises ``WeightsError`` (exit 2) for a file that is missing, damaged or of another network, ``RemoteDataError``
    (exit 1) if a server does not answer.
    """
    if source == NO_WEIGHTS:
        return None
    if source == IMAGENET:
        return _open_imagenet(IMAGENET_URL, download=may_download())
    return _load(_local_file(source), source)


def imagenet_path() -> Path:
    """The file of ImageNet's weights in torch's hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE


def stage_imagenet(source: str = "") -> Staged:
    """Puts the weights of ResNet18 into torch's hub cache, where ``--weights imagenet`` finds them.

    ``source``: "" for torchvision's site, the http address of a mirror, a file or ``s3://bucket/key``; their SHA-256
    must be the known one. Raises as ``open_weights``.
    """
    path = imagenet_path()
    if path.exists() and not _is_imagenet(_digest(path)):
        _log.warning("%s is damaged and staged again", path)
        path.unlink()
    fresh = not path.exists()
    if fresh and source and not source.startswith(WEB):
        with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as folder:
            file = _local_file(source, Path(folder))
            digest = _load(file, source).digest
            if not _is_imagenet(digest):
                raise WeightsError(
                    f"{source}: sha256 {digest[:8]}, expected {IMAGENET_SHA256_BEGINS}; give ImageNet's own file"
                )
            with atomic_file(path) as partial:
                shutil.copyfile(file, partial)
    url = source if source.startswith(WEB) else IMAGENET_URL
    return Staged(path, _open_imagenet(url, download=True).digest, fresh)


def _open_imagenet(url: str, *, download: bool) -> Weights:
    path = imagenet_path()
    if not path.exists() and not download:
        raise WeightsError(f"{path} is not there, and nothing is downloaded here; {STAGE_IN_CLUSTER}, or {HOW}")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with download_timeout():
                torch.hub.download_url_to_file(url, str(path), IMAGENET_SHA256_BEGINS, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:  # no network or space; RuntimeError: the digest
            if isinstance(error, HTTPError):
                error.close()  # releases the connection
            raise RemoteDataError(f"{url}: cannot be downloaded ({one_line(error)}); {HOW}") from error
    return _load(path, IMAGENET)


def _local_file(source: str, cache_dir: Path | None = None) -> Path:
    """The file of a path or ``s3://bucket/key``; objects are downloaded into ``cache_dir``."""
    if source.startswith(s3.SCHEME):
        return s3.download(source, cache_dir or writable_cache_dir())[0]
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    what = source or "the empty word"
    raise WeightsError(f"{what}: no such file; --weights takes {IMAGENET}, {NO_WEIGHTS}, a file or s3://...")


def _load(path: Path, source: str) -> Weights:
    digest = _digest(path)
    if source == IMAGENET and not _is_imagenet(digest):
        raise WeightsError(
            f"{path}: sha256 {digest[:8]}, expected {IMAGENET_SHA256_BEGINS}; delete it, then it is downloaded again"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InterruptedRunError:
        raise
    except Exception as error:  # torch raises whatever zipfile, pickle and its own reader raise
        raise WeightsError(
            f"{source}: is no file of weights ({type(error).__name__}); it has to be a state dict of torchvision's "
            "resnet18, written by torch.save"
        ) from error
    _check(content, source)
    return Weights(source, digest, content)


def _check(content: Any, source: str) -> None:
    """Checks every name and shape but those of the last layer, which is replaced; counters may be missing."""
    from torchvision.models import resnet18

    is_state_dict = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in content.items()
    )
    if not is_state_dict:
        raise WeightsError(f"{source}: holds no state dict; it has to be one of torchvision's resnet18")
    with torch.device("meta"):
        expected, found = _shapes(resnet18().state_dict()), _shapes(content)
    expected = {name: shape for name, shape in expected.items() if name in found or not name.endswith(COUNTERS)}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{source}: {len(wrong)} tensors are not those of torchvision's resnet18, the first is {name} "
            f"({found.get(name, 'missing')}, expected {expected.get(name, 'none')})"
        )


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith("fc.")}


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise CnnJobsError(f"{path}: cannot be read ({error.strerror})") from error


def _is_imagenet(digest: str) -> bool:
    return digest.startswith(IMAGENET_SHA256_BEGINS)
