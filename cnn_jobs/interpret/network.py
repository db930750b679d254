"""The network that is inspected: where its weights come from, what its layers output, what its answer depends on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn

from cnn_jobs.errors import CheckpointMismatchError, UserError, one_line
from cnn_jobs.interpret.measurements import Array
from cnn_jobs.interpret.picture import Pixels
from cnn_jobs.models.build import build_network, resize, whole_network
from cnn_jobs.models.weights import IMAGENET, Weights
from cnn_jobs.networks.spec import InputTransform, ResNet18
from cnn_jobs.tasks import get_task
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import RefusalError
from cnn_jobs.training.checkpoint import load_checkpoint


@dataclass(frozen=True, eq=False)
class InspectedNetwork:
    """``module``: normalised images in, logits out, in evaluation mode; ``size``: height and width of those images.

    ``classes``: their names, empty if unknown. ``first`` and ``last``: names of its first and last convolutional
    modules. ``note``: a caveat for the reader, "" for none.
    """

    name: str
    module: nn.Module
    transform: InputTransform
    size: tuple[int, int]
    classes: Sequence[str]
    first: str
    last: str
    note: str = ""

    def input_of(self, pixels: Pixels) -> torch.Tensor:
        """A picture (H, W, 3) uint8 as the network's input (1, 3, *size), resized and normalised."""
        images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (self.transform.mean, self.transform.std))
        return (resize(images, self.size) - mean) / std

    def layer(self, name: str) -> nn.Module:
        """The module of that name. Raises ``UserError`` that lists the convolutions."""
        try:
            return self.module.get_submodule(name) if name else self.module
        except AttributeError:
            raise UserError(
                f"--layer is '{name}', which the network does not have; its convolutions are "
                f"{', '.join(_convolutions(self.module))}"
            ) from None

    def output_of(self, layer: str, images: torch.Tensor) -> tuple[Array, Array]:
        """Activation (C, H, W) of the layer and probabilities (classes,), by one forward pass of (1, 3, H, W).

        Raises ``UserError`` if the layer's output has no height and width.
        """
        outputs: list[torch.Tensor] = []
        # A copy: an in-place ReLU behind the layer would change the tensor.
        handle = self.layer(layer).register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
        try:
            with torch.no_grad():
                logits = self.module(images)
        finally:
            handle.remove()
        if not outputs or outputs[0].ndim != 4:
            raise UserError(
                f"--layer is '{layer}', whose output is no picture; name a convolution or a layer behind one"
            )
        return outputs[0][0].double().numpy(), logits[0].double().softmax(0).numpy()

    def grad_cam(self, layer: str, images: torch.Tensor, target: int) -> Array:
        """How much each position of ``layer`` supports class ``target``: (H, W) in [0, 1].

        Grad-CAM (Selvaraju et al., ICCV 2017), by captum: channels weighted by their mean gradient, negative values
        set to zero.
        """
        from captum.attr import LayerGradCam

        with _without_inplace_relus(self.module), torch.enable_grad():
            method = LayerGradCam(self.module, self.layer(layer))
            plane = method.attribute(images.clone().requires_grad_(), target=target, relu_attributions=True)
        values: Array = plane[0, 0].detach().double().numpy()
        highest = float(values.max())
        return values / highest if highest > 0 else values


@contextmanager
def _without_inplace_relus(network: nn.Module) -> Iterator[None]:
    """Gradients of a layer's output are wrong if a ReLU behind the layer overwrites it."""
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU) and module.inplace]
    for module in relus:
        module.inplace = False
    yield
    for module in relus:
        module.inplace = True


def _convolutions(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]


# -- where the weights come from ---------------------------------------------------------------------------------------


def pretrained_resnet18(weights: Weights | None) -> InspectedNetwork:
    """torchvision's ResNet18 with the given weights, last layer included; random weights for ``None``."""
    from torchvision.models import ResNet18_Weights, resnet18

    transform, size = get_task("task4a").transform, (224, 224)
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = resnet18(weights=None)
        note = "random weights: the pictures show a network that has not learned anything yet"
        return InspectedNetwork(
            "ResNet18, random weights", network.eval(), transform, size, (), "conv1", "layer4", note
        )
    head = weights.has_head
    network = resnet18(weights=None, num_classes=len(weights.tensors["fc.weight"]) if head else 1000)
    known = {name: tensor for name, tensor in weights.tensors.items() if head or not name.startswith("fc.")}
    network.load_state_dict(known, strict=head)
    is_imagenet = weights.name == IMAGENET
    classes = ResNet18_Weights.IMAGENET1K_V1.meta["categories"] if is_imagenet else ()
    note = "" if head else "the weights have no last layer: the network's answer is random"
    name = f"ResNet18, weights {'of ImageNet' if is_imagenet else PurePath(weights.source).name}"
    return InspectedNetwork(name, network.eval(), transform, size, classes, "conv1", "layer4", note)


def network_of_run(remote: TrackingClient, run_id: str) -> InspectedNetwork:
    """The best network of a training run, from its checkpoints: the exported model does not accept hooks.

    Raises ``UserError`` if there is no such run or it has no checkpoint, ``CheckpointMismatchError`` if the checkpoint
    does not fit this version's network.
    """
    try:
        run = remote.get(run_id)
    except RefusalError as refusal:
        raise UserError(f"run {run_id}: {refusal}; 'cnn-jobs runs' lists the runs there are") from refusal
    artifacts = remote.artifacts(run_id, names.CHECKPOINTS) if run else []
    if run is None or names.BEST_CHECKPOINT not in artifacts:
        raise UserError(f"run {run_id} has no {names.BEST_CHECKPOINT}; name a run that finished training a task")
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as name:
        folder = Path(name)
        best = load_checkpoint(remote.download(run_id, names.BEST_CHECKPOINT, folder))
        frozen = load_checkpoint(remote.download(run_id, best["frozen"], folder)) if "frozen" in best else None
    try:
        return _from_checkpoints(run.name, best, frozen)
    except (RuntimeError, KeyError) as error:
        raise CheckpointMismatchError(
            f"{run.name}: its checkpoint is of another version of cnn-jobs ({one_line(error)}); train it again"
        ) from error


def _from_checkpoints(name: str, best: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> InspectedNetwork:
    """``best``: the trained part; ``frozen``: the frozen backbone, for task4a."""
    task, classes, (channels, height, width) = get_task(best["task"]), list(best["classes"]), best["image"]
    backbone, head = build_network(task.network, (channels, height, width), len(classes), seed=0)
    head.load_state_dict(best["model"])
    if backbone:
        backbone.layers.load_state_dict((frozen or {})["model"])
    network = whole_network(backbone, head).eval()
    convolutions = _convolutions(network)
    size, last = (height, width), convolutions[-1]
    if isinstance(task.network, ResNet18):
        size, last = (task.network.side, task.network.side), "trained.layer4"
    return InspectedNetwork(name, network, task.transform, size, classes, convolutions[0], last)
