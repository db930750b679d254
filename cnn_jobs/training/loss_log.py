"""The training losses, on their way from the device to the records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from cnn_jobs.errors import DivergedError
from cnn_jobs.training.recorder import Recorder
from cnn_jobs.training.state import TrainState

# On CUDA a loss is read back only every so many steps: each reading waits for the device.
CUDA_LOSS_INTERVAL = 20


@dataclass
class LossLog:
    """Reads losses back from the device, in order, and refuses one that is not finite."""

    state: TrainState
    recorder: Recorder
    device: torch.device
    pending: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: torch.Tensor) -> None:
        """The loss of the step that is under way, a scalar on the device."""
        self.pending.append(loss)
        if self.device.type == "cpu" or len(self.pending) == CUDA_LOSS_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Records every loss that waits. Raises ``DivergedError`` at the first that is not finite."""
        if not self.pending:
            return
        values = torch.stack(self.pending).float().tolist()
        self.pending.clear()
        for value in values:
            step = len(self.state.train_losses) + 1
            if not math.isfinite(value):
                raise diverged("training", value, step)
            self.state.train_losses.append(value)
            self.recorder.metrics({"train/loss": value}, step)


def diverged(kind: str, loss: float, step: int) -> DivergedError:
    """The error for a ``kind`` of loss that is not finite."""
    return DivergedError(f"the {kind} loss is {loss} at step {step}: the training diverged; try a smaller --lr")
