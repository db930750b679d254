"""The data that the processes of a training exchange at each step: gradients, the loss and the request to stop.

Not torch's ``DistributedDataParallel``: it rebuilds its buckets after the first step, so that a training resumed from a
checkpoint sums in another order than one that never stopped, and it renames the parameters. Here all gradients, the
loss and the request to stop travel in one tensor, laid out the same at every step.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from cnn_jobs.data.batches import Examples
from cnn_jobs.errors import CnnJobsError, PeerLostError, one_line
from cnn_jobs.recipe import derived_seed
from cnn_jobs.training.evaluation import Evaluation
from cnn_jobs.training.state import TrainState

# How long a wait for the others lasts before checking whether they are still there.
POLL = timedelta(seconds=0.5)
# Of a collective: long, because ``check`` watches the processes, and one that writes a checkpoint may take minutes.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# After a broken connection: how long its cause may take to arrive.
REASON_S = 5.0
# On CUDA: how long the main thread may be stuck in a driver call.
STUCK_S = 25.0


class ProcessGroup:
    """The processes of a training; this base class is a single process. Every process calls the same methods in the
    same order."""

    size = 1
    rank = 0

    def broadcast_state(self, state: TrainState) -> None:
        """Before the first step: gives every process the state of rank 0."""

    def close(self, state: TrainState) -> None:
        """After the last step: makes the model usable by a single process."""

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """This process' share of a global batch, along its first dimension."""
        return batch

    def share(self, examples: Examples) -> Examples:
        """This process' share of what is evaluated."""
        return examples

    def begin_step(self, seed: int, step: int) -> None:
        """Called before each step, so that dropout draws other numbers in each process."""

    def agree_to_stop(self, requested: bool) -> bool:
        """Whether all processes stop now, because the stop of one of them was ``requested``."""
        return requested

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Averages gradients and loss over the global batch; returns the loss.

        Raises ``PeerLostError``; the weights are then as before the step.
        """
        return loss

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Figures over all shares, of which this one has ``images``; ``None`` where one was not finished."""
        return part


class DistributedGroup(ProcessGroup):
    """Process ``rank`` of ``size``, on NCCL for CUDA, else gloo. ``check`` raises the error of another process.

    Never waits in a call that cannot be interrupted, because the data of a dead process never arrives.
    """

    def __init__(self, rank: int, size: int, store: Store, device: torch.device, check: Callable[[], object]) -> None:
        self.rank, self.size, self._device, self._check = rank, size, device, check
        self._agreed: bool | None = None
        self._stop_requested = False
        self._closed = threading.Event()
        self.backend = backend_of(device)
        if device.type == "cuda":
            # Otherwise its watchdog kills the process, with an exit code that explains nothing.
            os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
            threading.Thread(target=self._guard, name="peer-guard", daemon=True).start()
        self._in_thread(lambda: self._connect(PrefixStore("group", store)))

    # -- before the first step and after the last ------------------------------------------------------------------

    def broadcast_state(self, state: TrainState) -> None:
        """Also makes BatchNorm take its statistics over the global batch, on CUDA."""
        saved = self._broadcast(state.state_dict() if self.rank == 0 else {})
        if self.rank:
            state.load_state_dict(saved)
        if self._device.type == "cuda":
            state.model = nn.SyncBatchNorm.convert_sync_batchnorm(state.model)  # type: ignore[no-untyped-call]

    def close(self, state: TrainState) -> None:
        """Leaves the group and takes ``SyncBatchNorm`` out of the model."""
        self._closed.set()
        state.model = without_sync(state.model)
        dist.destroy_process_group()

    def _connect(self, store: Store) -> None:
        more: dict[str, Any] = {}
        if self._device.type == "cuda":
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            torch.cuda.set_device(index)
            more = {"device_id": torch.device("cuda", index)}
        dist.init_process_group(
            self.backend, store=store, rank=self.rank, world_size=self.size, timeout=COLLECTIVE_TIMEOUT, **more
        )

    def _broadcast(self, content: dict[str, Any]) -> dict[str, Any]:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        size = torch.tensor([len(buffer.getvalue())], device=self._device)
        self._wait(dist.broadcast(size, 0, async_op=True))
        data = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        if self.rank == 0:
            data.copy_(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
        self._wait(dist.broadcast(data, 0, async_op=True))
        received = io.BytesIO(data.cpu().numpy().tobytes())
        loaded: dict[str, Any] = torch.load(received, map_location="cpu", weights_only=True)
        return loaded

    # -- in the loop -----------------------------------------------------------------------------------------------

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """An equal number of rows in every process."""
        count = len(batch) // self.size
        return batch[self.rank * count : (self.rank + 1) * count]

    def share(self, examples: Examples) -> Examples:
        """The shares differ by at most one image."""
        first, end = (len(examples) * number // self.size for number in (self.rank, self.rank + 1))
        return examples.subset(slice(first, end))

    def begin_step(self, seed: int, step: int) -> None:
        """Seeds torch by the position in the training: no checkpoint has to keep the generators of all processes."""
        torch.manual_seed(derived_seed("dropout", seed, step, self.rank))

    def agree_to_stop(self, requested: bool) -> bool:
        """The request is sent with the gradients of the next step; at the first call, by itself."""
        self._stop_requested = requested
        if self._agreed is None:
            self._agreed = bool(self._sum(torch.tensor([float(requested)], device=self._device)))
        return self._agreed

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """One all-reduce for all of it. It ends before the weights change: all processes do a step, or none does."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        own = [loss.reshape(1).float(), torch.tensor([float(self._stop_requested)], device=self._device)]
        flat = self._sum(torch.cat([*(each.reshape(-1) for each in gradients), *own]))
        self._agreed = bool(flat[-1])
        flat /= self.size
        first = 0
        for gradient in gradients:
            gradient.copy_(flat[first : first + gradient.numel()].view_as(gradient))
            first += gradient.numel()
        return flat[-2]

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Sums loss, hits, images, and the processes that stopped."""
        figures = [0.0, 0.0, 0.0, 1.0]
        if part is not None:
            figures = [part.loss * images, part.accuracy * images, float(images), 0.0] if images else [0.0] * 4
        totals = self._sum(torch.tensor(figures, dtype=torch.float64, device=self._device)).tolist()
        loss, hits, count, stopped = totals
        if stopped:
            return None
        return Evaluation(loss / count, hits / count, part.logits if part else torch.empty(0))

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self._wait(dist.all_reduce(tensor, async_op=True))
        return tensor

    def _wait(self, work: Any) -> None:
        if self._device.type == "cuda":
            self._wait_on_cuda(work)
            return
        while True:
            try:
                work.wait(POLL)
                return
            except RuntimeError:
                if work.is_completed():
                    break
                self._check()  # only the poll timed out
        try:
            work.wait()  # completed with an error, unless it succeeded in the moment after
        except RuntimeError as error:
            self._raise_lost(error)

    def _wait_on_cuda(self, work: Any) -> None:
        """Polls: a blocking wait for data that never arrives could not be interrupted."""
        work.wait()  # of the stream, not of this thread
        event, asked = torch.cuda.Event(), time.monotonic()  # type: ignore[no-untyped-call]
        event.record()
        while not event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() - asked > POLL.total_seconds():
                self._check()
                asked = time.monotonic()
            time.sleep(2e-5)
        self._check()

    def _raise_lost(self, error: RuntimeError) -> None:
        """Raises the cause of a broken connection: the error that the lost process reported, if it could."""
        limit = time.monotonic() + REASON_S
        while time.monotonic() < limit:
            self._check()
            time.sleep(0.05)
        raise PeerLostError(f"lost another process: {one_line(error, 200)}") from error

    def _in_thread(self, action: Callable[[], object]) -> None:
        """For a call in which torch itself waits for other processes."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                action()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, name="connect", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            self._check()
        for failure in failures:
            if isinstance(failure, RuntimeError):
                self._raise_lost(failure)
            raise failure

    def _guard(self) -> None:
        """On CUDA even a forward pass waits for others, in the driver: this thread ends that wait after a loss."""
        while not self._closed.wait(1.0):
            try:
                self._check()
            except CnnJobsError as error:
                if dist.is_initialized():
                    dist.distributed_c10d._abort_process_group()
                if not self._closed.wait(STUCK_S):
                    os._exit(error.exit_code)


def backend_of(device: torch.device) -> str:
    """The communication library for a device."""
    return "nccl" if device.type == "cuda" else "gloo"


def without_sync(model: nn.Module) -> nn.Module:
    """The model with ``BatchNorm2d`` in place of ``SyncBatchNorm``; parameters and statistics are the same tensors."""
    for name, child in model.named_children():
        if not isinstance(child, nn.SyncBatchNorm):
            without_sync(child)
            continue
        plain = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
        plain._parameters, plain._buffers = child._parameters, child._buffers
        setattr(model, name, plain.train(child.training))
    return model
