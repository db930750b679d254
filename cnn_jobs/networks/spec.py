"""A network as plain data, without torch: the layers as the course report lists them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Square pooling: side and stride in pixels; ``kind``: ``max`` or ``average``."""

    kernel: int = 2
    stride: int = 2
    kind: str = "max"


@dataclass(frozen=True, kw_only=True)
class ConvBlock:
    """Convolution, ReLU, pooling and optionally BatchNorm, in that order."""

    filters: int
    kernel: int
    padding: int
    stride: int = 1
    pool: Pool = Pool()
    batch_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """Convolution blocks, then Flatten, Linear(hidden), ReLU, Linear(classes).

    ``dropout``: probability that an input of either linear layer is set to zero; 0: no dropout layers.
    """

    blocks: tuple[ConvBlock, ...]
    hidden: int = 64
    dropout: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; part of the recipe hash."""
        return {"kind": "convnet", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ResNet18:
    """torchvision's ResNet18 with a new last layer; only this layer and ``layer4`` are trained, the rest is frozen.

    Images are first resized to ``side`` x ``side`` pixels.
    """

    side: int = 224

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; part of the recipe hash."""
        return {"kind": "resnet18", "side": self.side, "trained": ["layer4", "fc"]}


Network = ConvNet | ResNet18


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """Normalisation of pixels in [0, 1] by channel: (pixel - mean) / std."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; part of the recipe hash."""
        return asdict(self)
