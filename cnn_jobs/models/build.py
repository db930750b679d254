"""Networks as torch modules, built from their tables; of ResNet18 a frozen backbone and a head that is trained."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform, Network, ResNet18
from cnn_jobs.networks.table import describe

BACKBONE = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
HEAD = ("layer4", "avgpool", "flatten", "fc")
BACKBONE_CHANNELS, BACKBONE_STRIDE = 256, 16


def build_network(
    network: Network,
    image: tuple[int, int, int],
    classes: int,
    seed: int,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Backbone | None, nn.Module]:
    """The frozen backbone, if the network has one, and the part that is trained.

    ``weights``: a pretrained state dict, for a network with a backbone. Otherwise as ``build_model``.
    """
    if isinstance(network, ResNet18):
        describe(network, image, classes)  # raises for unsuitable images
        return build_resnet18(weights, network.side, classes, seed)
    return None, build_model(network, image, classes, seed)


def whole_network(frozen: nn.Module | None, trained: nn.Module) -> nn.Module:
    """Both parts as one module: normalised images in, logits out."""
    return nn.Sequential(OrderedDict(frozen=frozen, trained=trained)) if frozen else trained


class PixelModel(nn.Module):
    """A network with its input transform: (N, 3, H, W) pixels in [0, 1] in, (N, classes) logits out."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, transform: InputTransform) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(transform.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.std).reshape(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of pixels (N, 3, H, W) in [0, 1]."""
        logits: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return logits


# -- convolutional networks ------------------------------------------------------------------------------------------


def build_model(network: ConvNet, image: tuple[int, int, int], classes: int, seed: int) -> nn.Sequential:
    """A freshly initialised network: (N, *image) normalised float in, (N, classes) logits out.

    The seed decides the weights; torch's own generator is left unchanged. Raises ``RecipeError`` if the images are too
    small for the network.
    """
    layers = describe(network, image, classes)
    features = next(layer for layer in layers if layer.kind == "Flatten").output[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(_modules(network, image[0], features, classes))


def _modules(network: ConvNet, channels: int, features: int, classes: int) -> OrderedDict[str, nn.Module]:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, block in enumerate(network.blocks, start=1):
        _add_block(modules, number, block, channels)
        channels = block.filters
    modules["flatten"] = nn.Flatten()
    number = len(network.blocks) + 1
    if network.dropout:
        modules[f"dropout{number}"] = nn.Dropout(network.dropout)
    modules[f"linear{number}"] = nn.Linear(features, network.hidden)
    modules[f"relu{number}"] = nn.ReLU(inplace=True)
    if network.dropout:
        modules[f"dropout{number + 1}"] = nn.Dropout(network.dropout)
    modules[f"linear{number + 1}"] = nn.Linear(network.hidden, classes)
    return modules


def _add_block(modules: OrderedDict[str, nn.Module], number: int, block: ConvBlock, channels: int) -> None:
    pool = block.pool
    modules[f"conv{number}"] = nn.Conv2d(
        channels, block.filters, block.kernel, stride=block.stride, padding=block.padding
    )
    if pool.kind == "max":
        # ReLU is monotonic and commutes with the maximum: after the pooling it has the same values and gradients, on a
        # quarter of the elements (docs/performance.md has the gain).
        modules[f"pool{number}"] = nn.MaxPool2d(pool.kernel, pool.stride)
        modules[f"relu{number}"] = nn.ReLU(inplace=True)
    else:
        modules[f"relu{number}"] = nn.ReLU(inplace=True)
        modules[f"pool{number}"] = nn.AvgPool2d(pool.kernel, pool.stride)
    if block.batch_norm:
        modules[f"norm{number}"] = nn.BatchNorm2d(block.filters)


# -- ResNet18 --------------------------------------------------------------------------------------------------------


def build_resnet18(
    weights: Mapping[str, torch.Tensor] | None, side: int, classes: int, seed: int
) -> tuple[Backbone, nn.Sequential]:
    """Backbone and head, with torchvision's parameter names; the last layer is new, for ``classes``.

    ``weights``: a state dict of torchvision's ResNet18, or ``None`` for random ones. The seed decides the random
    weights of the head; torch's own generator is left unchanged.
    """
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # all seeds share the features of one backbone
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
    return Backbone(backbone, side), head


class Backbone(nn.Module):
    """ResNet18 up to ``layer3``, frozen: normalised images (N, 3, H, W) in, features (N, 256, side / 16, side / 16)
    out.

    Images are first resized to ``side`` x ``side``. BatchNorm uses the statistics of the weights, so that the features
    of an image are constant.
    """

    def __init__(self, layers: nn.Module, side: int) -> None:
        super().__init__()
        self.layers, self.side = layers, side
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode."""
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
    """A batch (N, C, H, W) float resized to (N, C, *size), as by ``torchvision.transforms.v2.Resize`` on tensors:
    bilinear with antialias. A batch of that size is returned as it is."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
