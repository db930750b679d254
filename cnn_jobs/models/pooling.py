"""Max pooling that adds the bias of the convolution in front of it: after the maximum, on a quarter of the elements.

A constant added to all values of a window is added to their maximum, so that this is the same function. Its gradient is
then the sum over what the pooling gives, in place of over the many zeros that the pooling's gradient is scattered into.
The pooling's own gradient needs the places of its maxima and not its input: that is not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from cnn_jobs.models.cpu_kernels.winograd import takes_own_layers


class LateBiasConv2d(nn.Conv2d):
    """``nn.Conv2d`` that leaves its bias to a ``BiasMaxPool2d`` behind it, in training on a CPU; else it is the plain
    layer, for whoever looks at its outputs, and for any machine."""

    bias_is_late = False

    def leaves_bias(self, images: torch.Tensor) -> bool:
        """Whether this layer's outputs for such a batch lack the bias."""
        return self.bias_is_late and self.training and torch.is_grad_enabled() and takes_own_layers(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        bias = None if self.leaves_bias(images) else self.bias
        outputs: torch.Tensor = self._conv_forward(images, self.weight, bias)
        return outputs


class BiasMaxPool2d(nn.MaxPool2d):
    """``nn.MaxPool2d`` that adds the bias of ``convolution``, whose outputs it alone reads, where that leaves it."""

    convolution: LateBiasConv2d

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        if not self.convolution.leaves_bias(images):
            pooled: torch.Tensor = super().forward(images)
            return pooled
        biased: torch.Tensor = _PoolAndBias.apply(images, self.convolution.bias, self.kernel_size, self.stride)
        return biased


class _PoolAndBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, bias: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
        pooled, places = torch.ops.aten.max_pool2d_with_indices(images, (kernel, kernel), (stride, stride))
        ctx.save_for_backward(places)
        ctx.window, ctx.shape, ctx.strides = (kernel, stride), images.shape, images.stride()
        outputs: torch.Tensor = pooled.add_(bias[:, None, None])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of images and bias."""
        (places,), (kernel, stride) = ctx.saved_tensors, ctx.window
        wants_images, wants_bias, *_ = ctx.needs_input_grad
        of_images = None
        if wants_images:
            # In place of the images, of which torch takes no more than size and layout.
            of_images = torch.empty_strided(ctx.shape, ctx.strides, dtype=gradient.dtype)
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
                gradient, of_images, (kernel, kernel), (stride, stride), (0, 0), (1, 1), False, places,
                grad_input=of_images,
            )  # fmt: skip
        return of_images, gradient.sum((0, 2, 3)) if wants_bias else None, None, None


def add_bias_late(convolution: nn.Conv2d, pool: nn.MaxPool2d) -> None:
    """Lets ``pool`` add the bias of the ``convolution`` whose outputs nothing else reads."""
    if convolution.bias is None:
        return
    convolution.__class__, pool.__class__ = LateBiasConv2d, BiasMaxPool2d
    convolution.bias_is_late = True  # type: ignore[assignment]
    object.__setattr__(pool, "convolution", convolution)  # no submodule: its parameters have one name
