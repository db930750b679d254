"""Features of a small frozen backbone."""

from __future__ import annotations

from pathlib import Path

import torch

from cnn_jobs.data.batches import ImageSet, Parts, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.models.build import Backbone, build_resnet18
from cnn_jobs.networks.spec import InputTransform
from cnn_jobs.recipe import Recipe
from cnn_jobs.training.feature_cache import FEATURE_TYPES
from cnn_jobs.training.feature_store import DiskFeatures, FeatureKey
from tests.helpers.training import CPU


def small_backbone(weights: Path) -> Backbone:
    """ResNet18's, for images of 32 x 32."""
    backbone, _ = build_resnet18(torch.load(weights), 32, 10, seed=0)
    return backbone.to(memory_format=torch.channels_last)


def images_of(dataset: Dataset) -> Parts[ImageSet]:
    """The three parts of a data set as images on the CPU."""
    return place_on_device(dataset, Recipe(batch_size=9), InputTransform(), CPU.device, CPU.memory_format)


def key_of(backbone: Backbone, data: Parts[ImageSet], precision: str = "fp32", chunk: int = 5) -> FeatureKey:
    """The key of the features of all images."""
    count = len(data.train.images) + len(data.test.images)
    return FeatureKey({"trunk": "t"}, count, backbone.feature_shape, FEATURE_TYPES[precision], chunk)


def on_disk(key: FeatureKey, folder: Path) -> DiskFeatures:
    """The store on disk, opened and checked as by another process."""
    store = DiskFeatures(key, folder)
    assert store.check()
    return store
