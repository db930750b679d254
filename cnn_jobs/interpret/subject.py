"""The network that is looked at, and how a picture goes into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cnn_jobs.errors import CheckpointMismatchError, UserError
from cnn_jobs.interpret.picture import Pixels
from cnn_jobs.models.build import build_network, whole_network
from cnn_jobs.models.resnet import resize
from cnn_jobs.models.weights import IMAGENET, Weights
from cnn_jobs.networks.spec import InputTransform, ResNet18
from cnn_jobs.tasks import get_task


@dataclass(frozen=True, eq=False)
class Subject:
    """``network``: normalised images in, logits out, in evaluation mode. ``size``: height and width of those images.

    ``classes``: names of its answers, empty where nobody knows them. ``first`` and ``last``: names of its first and
    last convolutional layer's modules. ``note``: what a reader must know of it, "" for nothing.
    """

    name: str
    network: nn.Module
    transform: InputTransform
    size: tuple[int, int]
    classes: Sequence[str]
    first: str
    last: str
    note: str = ""

    def input_of(self, pixels: Pixels) -> torch.Tensor:
        """(1, 3, *size) normalised, of a picture (H, W, 3) uint8."""
        images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (self.transform.mean, self.transform.std))
        return (resize(images, self.size) - mean) / std

    def layer(self, name: str) -> nn.Module:
        """The module of that name. Raises ``UserError`` that lists those there are."""
        try:
            return self.network.get_submodule(name) if name else self.network
        except AttributeError:
            names = [each for each, module in self.network.named_modules() if isinstance(module, nn.Conv2d)]
            raise UserError(
                f"--layer is '{name}', which the network does not have; its convolutions are {', '.join(names)}"
            ) from None


def pretrained_resnet18(weights: Weights | None) -> Subject:
    """torchvision's ResNet18 with the weights of its file, head included; random ones without."""
    from torchvision.models import ResNet18_Weights, resnet18

    transform, size = get_task("task4a").transform, (224, 224)
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = resnet18(weights=None)
        note = "random weights: the pictures show how a network looks before it has learned anything"
        return Subject("ResNet18, random weights", network.eval(), transform, size, (), "conv1", "layer4", note)
    head = weights.has_head
    network = resnet18(weights=None, num_classes=len(weights.tensors["fc.weight"]) if head else 1000)
    known = {name: tensor for name, tensor in weights.tensors.items() if head or not name.startswith("fc.")}
    network.load_state_dict(known, strict=head)
    is_imagenet = weights.name == IMAGENET
    classes = ResNet18_Weights.IMAGENET1K_V1.meta["categories"] if is_imagenet else ()
    note = "" if head else "the weights have no last layer: what it answers is random"
    name = f"ResNet18, weights {'of ImageNet' if is_imagenet else PurePath(weights.source).name}"
    return Subject(name, network.eval(), transform, size, classes, "conv1", "layer4", note)


def trained_by_us(name: str, best: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> Subject:
    """The best network of a run: its checkpoint ``best.pt`` and, for task4a, that of its frozen part.

    Raises ``CheckpointMismatchError`` where they do not fit this version's network.
    """
    try:
        task, classes, (channels, height, width) = get_task(best["task"]), list(best["classes"]), best["image"]
        trunk, model = build_network(task.network, (channels, height, width), len(classes), seed=0)
        model.load_state_dict(best["model"])
        if trunk:
            trunk.layers.load_state_dict((frozen or {})["model"])
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointMismatchError(
            f"{name}: its checkpoint is of another version of cnn-jobs ({reason}); train it again"
        ) from error
    network = whole_network(trunk, model).eval()
    convolutions = [each for each, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    size, last = (height, width), convolutions[-1]
    if isinstance(task.network, ResNet18):
        size, last = (task.network.side, task.network.side), "trained.layer4"
    return Subject(name, network, task.transform, size, classes, convolutions[0], last)


Plane = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seen:
    """``activation``: (C, H, W) of the layer; ``logits``: (classes,)."""

    activation: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float64]

    @property
    def predicted(self) -> int:
        """The class with the highest logit."""
        return int(self.logits.argmax())

    @property
    def probability(self) -> float:
        """Of the predicted class, by softmax."""
        weights = np.exp(self.logits - self.logits.max())
        return float(weights.max() / weights.sum())


def look(subject: Subject, layer: str, images: torch.Tensor) -> Seen:
    """One forward pass of (1, 3, H, W). Raises ``UserError`` where the layer's output is no picture."""
    found: list[torch.Tensor] = []
    # A copy: an in-place ReLU behind the layer would change what was kept.
    handle = subject.layer(layer).register_forward_hook(lambda module, inputs, output: found.append(output.clone()))
    try:
        with torch.no_grad():
            logits = subject.network(images)
    finally:
        handle.remove()
    if not found or found[0].ndim != 4:
        raise UserError(f"--layer is '{layer}', whose output is no picture; name a convolution or what follows one")
    return Seen(found[0][0].double().numpy(), logits[0].double().numpy())


def grad_cam(subject: Subject, layer: str, images: torch.Tensor, target: int) -> Plane:
    """How much each place of ``layer`` speaks for class ``target``, in [0, 1], (H, W).

    Grad-CAM (Selvaraju et al., ICCV 2017), by captum: channels weighted by their mean gradient, no negative values.
    """
    from captum.attr import LayerGradCam

    with _out_of_place(subject.network), torch.enable_grad():
        method = LayerGradCam(subject.network, subject.layer(layer))
        plane = method.attribute(images.clone().requires_grad_(), target=target, relu_attributions=True)
    values: Plane = plane[0, 0].detach().double().numpy()
    highest = float(values.max())
    return values / highest if highest > 0 else values


class _out_of_place:  # noqa: N801 - used as a context
    """In-place ReLUs do not go together with gradients of a layer's output: for a while there are none."""

    def __init__(self, network: nn.Module) -> None:
        self._modules = [m for m in network.modules() if isinstance(m, nn.ReLU) and m.inplace]

    def __enter__(self) -> None:
        for module in self._modules:
            module.inplace = False

    def __exit__(self, *exc: object) -> None:
        for module in self._modules:
            module.inplace = True
