"""What a layer answers to a picture, and which part of the picture the answer of the whole network rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cnn_jobs.errors import UserError
from cnn_jobs.interpret.subject import Subject

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
