"""Task 4a as it is usually written: PIL images resized one by one in a ``DataLoader``, the whole network every step."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.models import resnet18

from benchmarks.usual import fork_allowed
from cnn_jobs.data.batches import split_indices

EVALUATION_BATCH = 100


class Pictures(torch.utils.data.Dataset):
    """Pictures and labels as in ``torchvision.datasets.CIFAR10``: one PIL image at a time, transformed."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, task: Any) -> None:
        self._images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = labels.tolist()
        normalize = transforms.Normalize(task.transform.mean, task.transform.std)
        side = task.network.side
        self._transform = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


class UsualTransfer:
    """The hand-out's way: all but layer4 and a new head frozen, ``.item()`` every step, torch's defaults."""

    def __init__(self, task: Any, recipe: Any, dataset: Any) -> None:
        self._recipe = recipe
        train, validation = split_indices(len(dataset.train_images), recipe.validation_fraction, recipe.split_seed)
        images, labels = dataset.train_images, dataset.train_labels
        self._train = Pictures(images[train], labels[train], task)
        self._validation = Pictures(images[validation], labels[validation], task)
        self._test = Pictures(dataset.test_images, dataset.test_labels, task)
        self._classes = len(dataset.classes)

    def run(self) -> dict[str, float]:
        """Trains once, with validations and final figures."""
        torch.use_deterministic_algorithms(False)
        recipe = self._recipe
        network = resnet18(weights=None)
        for parameter in network.parameters():
            parameter.requires_grad = False
        network.fc = torch.nn.Linear(network.fc.in_features, self._classes)
        for parameter in network.layer4.parameters():
            parameter.requires_grad = True
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=recipe.lr)
        loader = DataLoader(self._train, recipe.batch_size, shuffle=True, drop_last=True)
        middle = len(loader) // recipe.validations_per_epoch
        for _ in range(recipe.epochs):
            with fork_allowed():
                batches = iter(loader)
            for number, (images, labels) in enumerate(batches, start=1):
                network.train()
                loss = F.cross_entropy(network(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
                if number in (middle, len(loader)):
                    self._evaluate(network, self._validation)
        for _ in ("best", "last"):
            for part in (self._train, self._validation, self._test):
                self._evaluate(network, part)
        return {}

    @torch.no_grad()
    def _evaluate(self, network: torch.nn.Module, part: Pictures) -> float:
        network.eval()
        loss = 0.0
        for images, labels in DataLoader(part, EVALUATION_BATCH):
            loss += F.cross_entropy(network(images), labels, reduction="sum").item()
        return loss / len(part)
