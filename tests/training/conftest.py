"""What the tests of the training share."""

from __future__ import annotations

import pytest

from cnn_jobs.data.dataset import Dataset
from tests.helpers.training import Experiment


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test in this folder."""


@pytest.fixture
def experiment(tiny_dataset: Dataset) -> Experiment:
    return Experiment(tiny_dataset)
