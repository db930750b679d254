"""A training step as a CUDA graph, launched at once: for small networks, launching a hundred kernels one by one takes
longer than they compute.

The step keeps the rules of https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: the same shapes and
addresses each time, nothing read back from the device, random numbers from torch's own generator. Kernels and their
order are the same, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Images, labels, and the receiver of the loss.
Step = Callable[[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], object]], None]
# On a side stream: libraries create their handles and choose their algorithms, which must not be captured.
WARM_UP_STEPS = 3


class GraphedStep:
    """A ``Step`` that is captured at its fourth call and replayed from then on. Every batch has the same shape.

    Once it is captured, the loss arrives after the weights have changed.
    """

    def __init__(self, step: Step) -> None:
        self._step, self._calls = step, 0
        self._graph: Any = None
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._losses: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, see_loss: Callable[[torch.Tensor], object]) -> None:
        """One step on this batch."""
        if self._graph is None:
            self._calls += 1
            if self._calls <= WARM_UP_STEPS:
                self._warm_up(images, labels, see_loss)
                return
            self._capture(images, labels)
        for kept, given in zip(self._inputs, (images, labels), strict=True):
            kept.copy_(given)
        self._graph.replay()
        (loss,) = self._losses
        see_loss(loss.clone())  # the next replay writes into it

    def _warm_up(self, images: torch.Tensor, labels: torch.Tensor, see_loss: Callable[[torch.Tensor], object]) -> None:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._step(images, labels, see_loss)
        here.wait_stream(aside)

    def _capture(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._inputs = (torch.empty_like(images), torch.empty_like(labels))
        graph = torch.cuda.CUDAGraph()
        # Other threads may ask the device for its memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step(*self._inputs, self._losses.append)
        self._graph = graph
