from __future__ import annotations

import numpy as np
import pytest

from cnn_jobs.data.shapes import CLASSES, _Draw, draw_shapes
from cnn_jobs.errors import DataError


def test_the_default_set_is_the_same_bytes_on_every_machine() -> None:
    dataset = draw_shapes()
    assert dataset.digest == "a88a2e992cc8229631ba455d9222deb3a5e214a8ad24f44f6fad0818989c9191"
    assert dataset.train_images.shape == (6000, 3, 32, 32)
    assert dataset.test_images.shape == (1000, 3, 32, 32)


def test_classes_are_of_equal_number_and_no_image_is_in_both_splits() -> None:
    dataset = draw_shapes(200, 200)
    assert (dataset.name, dataset.uri, dataset.synthetic) == ("shapes", "shapes", True)
    assert np.bincount(dataset.train_labels).tolist() == [20] * len(CLASSES)
    assert np.bincount(dataset.test_labels).tolist() == [20] * len(CLASSES)
    train = {image.numpy().tobytes() for image in dataset.train_images}
    test = {image.numpy().tobytes() for image in dataset.test_images}
    assert len(train) == 200
    assert not train & test


def test_the_number_of_images_need_not_be_a_multiple_of_a_block() -> None:
    few, many = draw_shapes(500, 1), draw_shapes(507, 1)
    assert (many.train_images[:500] == few.train_images).all()
    assert many.train_images[500:].float().std(dim=(1, 2, 3)).min() > 5


def test_no_images_are_an_error() -> None:
    with pytest.raises(DataError, match="train has no images"):
        draw_shapes(0, 10)


def test_the_mean_colour_does_not_decide_the_class() -> None:
    """It hints at the class: the nearest class mean is better than chance."""
    dataset = draw_shapes(2000, 1000)
    train, test = (images.float().mean(dim=(2, 3)) for images in (dataset.train_images, dataset.test_images))
    means = np.stack([train[dataset.train_labels == label].mean(0) for label in range(10)])
    distances = ((test.numpy()[:, None] - means) ** 2).sum(-1)
    accuracy = (distances.argmin(1) == dataset.test_labels.numpy()).mean()
    assert 0.1 < accuracy < 0.3


def test_raw_bits_become_integers_in_the_whole_range() -> None:
    drawn = _Draw(0).between(-3, 3, 7000)
    counts = np.bincount(drawn + 3)
    assert len(counts) == 7
    assert counts.min() > 850


def test_noise_is_triangular_around_zero() -> None:
    noise = _Draw(0).noise(100_001)
    assert abs(float(noise.mean())) < 2
    # The variance of the sum of two uniform numbers is twice that of one: (256**2 - 1) / 12 each.
    assert float(noise.std()) == pytest.approx((2 * (256**2 - 1) / 12) ** 0.5, rel=0.02)
