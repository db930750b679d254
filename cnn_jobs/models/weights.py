"""Pretrained weights of ResNet18: a name, a file or an S3 object in, a checked state dict out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch

from cnn_jobs.data import s3
from cnn_jobs.data.sources import writable_cache_dir
from cnn_jobs.errors import CnnJobsError, InterruptedRunError, RemoteDataError, WeightsError
from cnn_jobs.recipe import NO_WEIGHTS
from cnn_jobs.system.environment import STAGE_IN_CLUSTER, download_timeout, may_download

IMAGENET = "imagenet"
# ResNet18_Weights.IMAGENET1K_V1; the file's name holds the first 8 digits of its SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
IMAGENET_FILE = IMAGENET_URL.rpartition("/")[2]
IMAGENET_SHA256_BEGINS = "f37072fd"
HEAD_FEATURES = 512
# BatchNorm counts its batches since torch 0.4.1; older files do without, and in evaluation nobody asks.
COUNTERS = ".num_batches_tracked"
HOW = (
    f"give the file by --weights PATH or --weights s3://bucket/key, or put {IMAGENET_FILE} into "
    "$TORCH_HOME/hub/checkpoints"
)


@dataclass(frozen=True)
class Weights:
    """A state dict of torchvision's ResNet18. ``digest``: SHA-256 (64 hex digits) of its file; ``source``: its URI."""

    source: str
    digest: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def name(self) -> str:
        """What they are, wherever they lie."""
        return IMAGENET if self.digest.startswith(IMAGENET_SHA256_BEGINS) else f"sha256:{self.digest[:12]}"

    @property
    def has_head(self) -> bool:
        """Whether they hold a last layer that fits the network before it."""
        weight, bias = self.tensors.get("fc.weight"), self.tensors.get("fc.bias")
        if weight is None or bias is None:
            return False
        return weight.ndim == 2 and weight.shape[1] == HEAD_FEATURES and bias.shape == weight.shape[:1]


def open_weights(
    source: str, *, cache_dir: Path | None = None, download: bool | None = None, url: str = IMAGENET_URL
) -> Weights | None:
    """``imagenet``, a path or ``s3://bucket/key``; ``None`` for ``none``.

    ``download``: whether those of ImageNet may come from ``url`` (default: ``environment.may_download()``). Raises
    ``WeightsError`` (exit 2) for what is missing, damaged or of another network, ``RemoteDataError`` (exit 1)
    where a server does not answer.
    """
    if source == NO_WEIGHTS:
        return None
    if source == IMAGENET:
        path = _imagenet_file(url, download=may_download() if download is None else download)
    elif source.startswith(s3.SCHEME):
        path, _ = s3.download(source, cache_dir or writable_cache_dir())
    else:
        path = Path(source).expanduser()
        if not _is_file(path):
            raise WeightsError(
                f"{source or 'the empty word'}: no such file; --weights takes {IMAGENET}, {NO_WEIGHTS}, a file or s3://..."
            )
    digest = file_digest(path)
    if source == IMAGENET and not digest.startswith(IMAGENET_SHA256_BEGINS):
        raise WeightsError(
            f"{path}: sha256 {digest[:8]}, expected {IMAGENET_SHA256_BEGINS}; delete it, then it is downloaded again"
        )
    return Weights(source, digest, _read(path, source))


def imagenet_path() -> Path:
    """Where ImageNet's lie: in torch's hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE


def _imagenet_file(url: str, *, download: bool) -> Path:
    """From torch's hub cache, downloaded where that is allowed and possible."""
    path = imagenet_path()
    if not path.exists() and not download:
        raise WeightsError(f"{path} is not there, and nothing is downloaded here; {STAGE_IN_CLUSTER}, or {HOW}")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with download_timeout():
                torch.hub.download_url_to_file(url, str(path), IMAGENET_SHA256_BEGINS, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:  # no network, no room; RuntimeError: the digest
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            raise RemoteDataError(f"{url}: cannot be downloaded ({' '.join(str(error).split())}); {HOW}") from error
    return path


def _read(path: Path, source: str) -> Mapping[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InterruptedRunError:
        raise
    except Exception as error:  # torch raises whatever zipfile, pickle and its own reader do
        raise WeightsError(
            f"{source}: is no file of weights ({type(error).__name__}); it has to be a state dict of torchvision's "
            "resnet18, written by torch.save"
        ) from error
    _check(content, source)
    tensors: Mapping[str, torch.Tensor] = content
    return tensors


def _check(content: Any, source: str) -> None:
    """Every name and shape but those of the last layer, which is made anew; counters may be missing."""
    from torchvision.models import resnet18

    names_tensors = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in content.items()
    )
    if not names_tensors:
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises ``CnnJobsError`` where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CnnJobsError(f"{path}: cannot be read ({error.strerror})") from error
