"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.data.batches import ImageSet, Parts
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.models.build import Backbone
from tests.helpers.features import images_of, small_backbone
from tests.helpers.training import Experiment


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test in this folder."""


@pytest.fixture
def experiment(tiny_dataset: Dataset) -> Experiment:
    return Experiment(tiny_dataset)


@pytest.fixture(scope="module")
def backbone(resnet18_file: Path) -> Backbone:
    return small_backbone(resnet18_file)


@pytest.fixture
def images(tiny_dataset: Dataset) -> Parts[ImageSet]:
    """40 training and 12 test images."""
    return images_of(tiny_dataset)
