"""torchvision's ResNet18 in two parts: a frozen trunk, up to ``layer3``, and the top that is trained."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from cnn_jobs.models.cpu_kernels.winograd import use_tiles

BACKBONE = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
HEAD = ("layer4", "avgpool", "flatten", "fc")
BACKBONE_CHANNELS, BACKBONE_STRIDE = 256, 16


class Backbone(nn.Module):
    """Normalised images (N, 3, H, W) in, features (N, 256, side / 16, side / 16) out; nothing in it is ever trained.

    Its BatchNorm uses the statistics that came with the weights, so that the features of an image are a constant.
    Images are resized to ``side`` x ``side`` first.
    """

    def __init__(self, layers: nn.Module, side: int) -> None:
        super().__init__()
        self.layers, self.side = layers, side
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch."""
        features: torch.Tensor = self.layers(resize(images, (self.side, self.side)))
        return features

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's features."""
        return BACKBONE_CHANNELS, self.side // BACKBONE_STRIDE, self.side // BACKBONE_STRIDE

    def digest(self) -> str:
        """SHA-256 (64 hex digits) over names, types, shapes and bytes of its weights and statistics."""
        digest = hashlib.sha256()
        for name, tensor in self.layers.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A batch (N, C, H, W) float to (N, C, *size), as ``torchvision.transforms.v2.Resize`` does it on tensors: bilinear
    with antialias. One that has the size already is returned as it is."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def build_resnet18(
    weights: Mapping[str, torch.Tensor] | None, side: int, classes: int, seed: int
) -> tuple[Backbone, nn.Sequential]:
    """Trunk and top, whose names of parameters are torchvision's; the last layer is new, for ``classes``.

    ``weights``: a state dict of torchvision's ResNet18, or ``None`` for random ones. The same seed gives the same
    random ones, and leaves torch's own generator as it was.
    """
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the trunk is not what a seed varies: all seeds share its features
        network = resnet18(weights=None)
        torch.manual_seed(seed)
        if weights is None:
            network.layer4 = resnet18(weights=None).layer4
        network.fc = nn.Linear(network.fc.in_features, classes)
    if weights is not None:
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
        missing = network.load_state_dict(kept, strict=False)
        assert set(missing.missing_keys) == {"fc.weight", "fc.bias"}
        assert not missing.unexpected_keys
    network.flatten = nn.Flatten()
    backbone, head = (
        nn.Sequential(OrderedDict((name, getattr(network, name)) for name in part)) for part in (BACKBONE, HEAD)
    )
    return Backbone(backbone, side), use_tiles(head)
