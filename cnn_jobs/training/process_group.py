"""What processes that train one run share at each step: gradients, the loss, and the wish to stop.

Not torch's ``DistributedDataParallel``: it rebuilds its buckets after the first step, so that a training that goes on
from a checkpoint adds up in another order than one that never stopped; and it renames the parameters. Here all
gradients, the loss and the wish to stop travel in one tensor, laid out the same at every step.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from cnn_jobs.data.batches import Examples
from cnn_jobs.data.split import derived_seed
from cnn_jobs.errors import CnnJobsError, PeerLostError
from cnn_jobs.training.evaluation import Evaluation
from cnn_jobs.training.state import TrainState


class Group(Protocol):
    """The processes of a training, as the loop sees them. Every process calls the same methods in the same order."""

    alone: bool

    def adopt(self, state: TrainState) -> None:
        """Before the first step: all of them begin with the state of rank 0."""

    def close(self, state: TrainState) -> None:
        """After the last step: each is alone again."""

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """This process' share of a global batch, along its first dimension."""

    def share(self, examples: Examples) -> Examples:
        """This process' share of what is evaluated."""

    def begin_step(self, seed: int, step: int) -> None:
        """Called before each step: dropout must not draw the same in all processes."""

    def stopping(self, wish: bool) -> bool:
        """Whether all of them stop now, because one of them wished it."""

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Makes gradients, and the loss that is returned, those of the global batch.

        Raises ``PeerLostError``; the weights are then as they were before the step.
        """

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Figures over all shares, of which this one has so many images; ``None`` where one was not finished."""


class OneProcess:
    """Nothing to share."""

    alone = True

    def adopt(self, state: TrainState) -> None:
        """It has it already."""

    def close(self, state: TrainState) -> None:
        """It was alone all the time."""

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """All of it."""
        return batch

    def share(self, examples: Examples) -> Examples:
        """All of them."""
        return examples

    def begin_step(self, seed: int, step: int) -> None:
        """The generators go on from where they are."""

    def stopping(self, wish: bool) -> bool:
        """Its own wish."""
        return wish

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Its own gradients."""
        return loss

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Its own figures."""
        return part


# How long a wait for the others lasts before it is asked whether they are still there.
POLL = timedelta(seconds=0.5)
# Of a collective: its processes are watched by other means, and one that writes a checkpoint may take its time.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# After a connection broke: until it is known why.
REASON_S = 5.0
# On CUDA, of a main thread that does not come out of a call to the driver.
STUCK_S = 25.0


class ProcessGroup:
    """Process ``rank`` of ``size``: NCCL on CUDA, else gloo. ``check`` raises what has become of the others.

    It never waits in a call that cannot be left: what a dead process owes never comes.
    """

    alone = False

    def __init__(self, rank: int, size: int, store: Store, device: torch.device, check: Callable[[], object]) -> None:
        self.rank, self.size, self._device, self._check = rank, size, device, check
        self._agreed: bool | None = None
        self._wish = False
        self._closed = threading.Event()
        self.backend = backend_of(device)
        if device.type == "cuda":
            # Else its watchdog ends the process by a signal of its own, with an exit code that says nothing.
            os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
            threading.Thread(target=self._guard, name="peer-guard", daemon=True).start()
        self._in_thread(lambda: self._connect(PrefixStore("group", store)))

    # -- before the first step and after the last ------------------------------------------------------------------

    def adopt(self, state: TrainState) -> None:
        """Gives every process the state of rank 0. On CUDA, BatchNorm then takes its statistics of the global batch."""
        content = state.state_dict() if self.rank == 0 else {}
        saved = self._broadcast(content)
        if self.rank:
            state.load_state_dict(saved)
        if self._device.type == "cuda":
            state.model = nn.SyncBatchNorm.convert_sync_batchnorm(state.model)  # type: ignore[no-untyped-call]

    def close(self, state: TrainState) -> None:
        """The end of the training: the model is again one that any process can use alone."""
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
        """Its rows: an equal number in every process."""
        count = len(batch) // self.size
        return batch[self.rank * count : (self.rank + 1) * count]

    def share(self, examples: Examples) -> Examples:
        """Its rows; the last process may have one more than the first."""
        first, end = (len(examples) * number // self.size for number in (self.rank, self.rank + 1))
        return examples.some(slice(first, end))

    def begin_step(self, seed: int, step: int) -> None:
        """A stream of its own at each step: a function of the place in the training, so that no checkpoint has to
        keep those of all processes."""
        torch.manual_seed(derived_seed("dropout", seed, step, self.rank))

    def stopping(self, wish: bool) -> bool:
        """The wish travels with the gradients of the next step; asked for the first time, by itself."""
        self._wish = wish
        if self._agreed is None:
            self._agreed = bool(self._sum(torch.tensor([float(wish)], device=self._device)))
        return self._agreed

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """One all-reduce for all of it. It is over before the weights change: a step is done by all or by none."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        own = [loss.reshape(1).float(), torch.tensor([float(self._wish)], device=self._device)]
        flat = self._sum(torch.cat([*(each.reshape(-1) for each in gradients), *own]))
        self._agreed = bool(flat[-1])
        flat /= self.size
        first = 0
        for gradient in gradients:
            gradient.copy_(flat[first : first + gradient.numel()].view_as(gradient))
            first += gradient.numel()
        return flat[-2]

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Sums of loss, hits, images, and of those who were stopped."""
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
                self._check()  # only the time was up
        try:
            work.wait()  # how it was completed: perhaps well, in the moment after
        except RuntimeError as error:
            self._lost(error)

    def _wait_on_cuda(self, work: Any) -> None:
        """Asks in place of waiting: a wait for what never comes ends with the process."""
        work.wait()  # of the stream, not of this thread
        event, asked = torch.cuda.Event(), time.monotonic()  # type: ignore[no-untyped-call]
        event.record()
        while not event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() - asked > POLL.total_seconds():
                self._check()
                asked = time.monotonic()
            time.sleep(2e-5)
        self._check()

    def _lost(self, error: RuntimeError) -> None:
        """Raises the reason of a broken connection: that of a process which had the time to tell, or none."""
        limit = time.monotonic() + REASON_S
        while time.monotonic() < limit:
            self._check()
            time.sleep(0.05)
        raise PeerLostError(f"lost another process: {' '.join(str(error).split())[:200]}") from error

    def _in_thread(self, action: Callable[[], object]) -> None:
        """For a call that waits for others inside of torch."""
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
                self._lost(failure)
            raise failure

    def _guard(self) -> None:
        """On CUDA, where even a forward pass waits for others inside of the driver: gets the main thread out of it."""
        while not self._closed.wait(1.0):
            try:
                self._check()
            except CnnJobsError as error:
                if dist.is_initialized():
                    dist.distributed_c10d._abort_process_group()
                if not self._closed.wait(STUCK_S):
                    os._exit(error.exit_code)


def backend_of(device: torch.device) -> str:
    """What the processes talk by."""
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
