"""Where layers of our own may stand in for torch's."""

from __future__ import annotations

import torch


def takes_own_layers(images: torch.Tensor) -> bool:
    """Whether they would be faster for such a batch, and nobody asks for something else: on a CPU, in the batch's own
    precision. A model that is exported has torch's layers, for any machine."""
    return bool(
        images.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    )
