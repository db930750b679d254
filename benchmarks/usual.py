"""The usual PyTorch loop, and the data set and loader that it shares with Lightning."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.networks import usual_network
from benchmarks.setting import Setting


class PictureDataset(torch.utils.data.Dataset):
    """The training part as ``torchvision.datasets.CIFAR10`` serves it: a PIL image at a time, then its transform."""

    def __init__(self, setting: Setting) -> None:
        part = setting.data.train
        self._images: np.ndarray = part.images[part.indices].cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self._labels: list[int] = part.labels[part.indices].tolist()
        normalize = transforms.Normalize(setting.task.transform.mean, setting.task.transform.std)
        self._transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def picture_loader(setting: Setting, pictures: PictureDataset, workers: int) -> DataLoader:
    """Shuffled whole batches; worker processes stay from epoch to epoch, so that their start is not timed twice."""
    size = setting.recipe.batch_size
    keep, pin = workers > 0, setting.placement.device.type == "cuda"
    return DataLoader(
        pictures, size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=keep, pin_memory=pin
    )


class UsualLoop:
    """The loop of the tutorials: ``DataLoader``, ReLU before pooling, torch's defaults, ``.item()`` every step."""

    def __init__(self, setting: Setting, pictures: PictureDataset, workers: int) -> None:
        self._setting = setting
        self._device = setting.placement.device
        self._model = usual_network(setting.task.network, setting.new_state().model).to(self._device)
        self._optimizer = setting.usual_optimizer(self._model.parameters())
        self._batches = _endless(picture_loader(setting, pictures, workers))

    def run(self, untimed: int, timed: int) -> float:
        """Continues in the stream of batches where the last call ended."""
        self._setting.configure(shipped=False)
        self._model.train()
        self._steps(untimed)
        started = self._setting.now()
        self._steps(timed)
        return self._setting.now() - started

    def _steps(self, count: int) -> None:
        for _ in range(count):
            images, labels = (each.to(self._device, non_blocking=True) for each in next(self._batches))
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self._model(images), labels)
            loss.backward()
            self._optimizer.step()
            loss.item()

    def close(self) -> None:
        """Ends the worker processes."""
        self._batches.close()


def _endless(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        with fork_allowed():
            batches = iter(loader)
        yield from batches


@contextlib.contextmanager
def fork_allowed() -> Iterator[None]:
    """Python 3.12 and later warn that a process with threads forks, as every ``DataLoader`` with workers does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        yield
