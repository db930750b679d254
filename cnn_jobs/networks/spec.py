"""A network as the course report tabulates it: plain data, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Square pooling: side and stride in pixels, and ``max`` or ``average``."""

    kernel: int = 2
    stride: int = 2
    kind: str = "max"


@dataclass(frozen=True, kw_only=True)
class ConvBlock:
    """Convolution, ReLU, pooling and, where asked for, BatchNorm - in that order."""

    filters: int
    kernel: int
    padding: int
    stride: int = 1
    pool: Pool = Pool()
    batch_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """Convolution blocks, then Flatten, Linear(hidden), ReLU, Linear(classes).

    ``dropout`` is the probability with which each of the two linear layers loses an input; 0 leaves it out.
    """

    blocks: tuple[ConvBlock, ...]
    hidden: int = 64
    dropout: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON-ready values; goes into the recipe hash."""
        return {"kind": "convnet", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ResNet18:
    """torchvision's ResNet18 with a new last layer; only that one and ``layer4`` are trained, the rest is frozen.

    Images are resized to ``side`` x ``side`` pixels first.
    """

    side: int = 224

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; goes into the recipe hash."""
        return {"kind": "resnet18", "side": self.side, "trained": ["layer4", "fc"]}


Network = ConvNet | ResNet18


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """Normalisation of pixels in [0, 1], by channel: (pixel - mean) / std."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; goes into the recipe hash."""
        return asdict(self)
