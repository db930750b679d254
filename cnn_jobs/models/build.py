"""From a network's table to a torch module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from cnn_jobs.models.cpu_kernels.winograd import WinogradConv2d, use_tiles
from cnn_jobs.models.pooling import add_bias_late
from cnn_jobs.models.resnet import Backbone, build_resnet18
from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform, Network, ResNet18
from cnn_jobs.networks.table import describe


def build_network(
    network: Network,
    image: tuple[int, int, int],
    classes: int,
    seed: int,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Backbone | None, nn.Module]:
    """The frozen part that stands in front, where there is one, and the part that is trained.

    ``weights``: a pretrained state dict, for a network that takes one. Otherwise as ``build_model``.
    """
    if isinstance(network, ResNet18):
        describe(network, image, classes)  # refuses what does not fit
        return build_resnet18(weights, network.side, classes, seed)
    return None, build_model(network, image, classes, seed)


def whole_network(frozen: nn.Module | None, trained: nn.Module) -> nn.Module:
    """Both parts as one module: normalised images in, logits out."""
    return nn.Sequential(OrderedDict(frozen=frozen, trained=trained)) if frozen else trained


def build_model(network: ConvNet, image: tuple[int, int, int], classes: int, seed: int) -> nn.Sequential:
    """A freshly initialised network: (N, *image) normalised float in, (N, classes) logits out.

    The same seed gives the same weights, and leaves torch's own generator as it was. Raises ``RecipeError`` where
    the images are too small for the network.
    """
    layers = describe(network, image, classes)
    features = next(layer for layer in layers if layer.kind == "Flatten").output[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = use_tiles(nn.Sequential(_modules(network, image[0], features, classes)))
    for number, block in enumerate(network.blocks, start=1):
        convolution, pool = model.get_submodule(f"conv{number}"), model.get_submodule(f"pool{number}")
        if isinstance(convolution, WinogradConv2d):  # a bias costs next to nothing there
            convolution.pooling = (block.pool.kernel, block.pool.stride)
        elif isinstance(convolution, nn.Conv2d) and isinstance(pool, nn.MaxPool2d):
            add_bias_late(convolution, pool)
    return model


def _modules(network: ConvNet, channels: int, features: int, classes: int) -> OrderedDict[str, nn.Module]:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, block in enumerate(network.blocks, start=1):
        _add_block(modules, number, block, channels)
        channels = block.filters
    modules["flatten"] = nn.Flatten()
    number = len(network.blocks) + 1
    if network.dropout:
        modules[f"dropout{number}"] = UniformDropout(network.dropout)
    modules[f"linear{number}"] = nn.Linear(features, network.hidden)
    modules[f"relu{number}"] = nn.ReLU(inplace=True)
    if network.dropout:
        modules[f"dropout{number + 1}"] = UniformDropout(network.dropout)
    modules[f"linear{number + 1}"] = nn.Linear(network.hidden, classes)
    return modules


def _add_block(modules: OrderedDict[str, nn.Module], number: int, block: ConvBlock, channels: int) -> None:
    pool = block.pool
    modules[f"conv{number}"] = nn.Conv2d(
        channels, block.filters, block.kernel, stride=block.stride, padding=block.padding
    )
    if pool.kind == "max":
        # ReLU is monotonic, so it commutes with the maximum: after the pooling it has the same values and the same
        # gradients, on a quarter of the elements (docs/performance.md has what it saves).
        modules[f"pool{number}"] = nn.MaxPool2d(pool.kernel, pool.stride)
        modules[f"relu{number}"] = nn.ReLU(inplace=True)
    else:
        modules[f"relu{number}"] = nn.ReLU(inplace=True)
        modules[f"pool{number}"] = nn.AvgPool2d(pool.kernel, pool.stride)
    if block.batch_norm:
        modules[f"norm{number}"] = nn.BatchNorm2d(block.filters)


class UniformDropout(nn.Dropout):
    """``nn.Dropout`` that draws uniform numbers on a CPU: torch's Bernoulli numbers took four times as long, 3 % of a
    step of task3e."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Each value is dropped with probability p (a multiple of 2**-24), the others are divided by 1 - p."""
        if not self.training or values.device.type != "cpu":
            return super().forward(values)
        kept = torch.rand(values.shape) >= self.p
        return values * kept.to(values.dtype).mul_(1 / (1 - self.p))


class PixelModel(nn.Module):
    """A network with its input transform inside: (N, 3, H, W) pixels in [0, 1] in, (N, classes) logits out."""

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
