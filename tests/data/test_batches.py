from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.data.batches import (
    CROP_PADDING,
    ImageSet,
    TrainingData,
    augment,
    epoch_order,
    generator_for,
    place_on_device,
    random_crop,
    split_indices,
)
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import RecipeError
from cnn_jobs.networks.spec import InputTransform
from cnn_jobs.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(validation_fraction=0.25)
SEEDS = st.integers(0, 2**63 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def placed(
    dataset: Dataset,
    *,
    recipe: Recipe = RECIPE,
    transform: InputTransform | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> TrainingData:
    return place_on_device(dataset, recipe, transform or InputTransform(), CPU, memory_format)


def random_images(count: int, side: int = 9) -> torch.Tensor:
    """Without black pixels, unlike the borders of a crop."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_the_parts_are_the_data_set(tiny_dataset: Dataset) -> None:
    data = placed(tiny_dataset)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 12)
    together = sorted(data.train.indices.tolist() + data.validation.indices.tolist())
    assert together == list(range(40))
    assert data.train.images is data.validation.images  # one copy of the images
    assert torch.equal(data.test.labels, tiny_dataset.test_labels)


def test_the_split_does_not_depend_on_the_seed_of_the_training(tiny_dataset: Dataset) -> None:
    held_out = placed(tiny_dataset).validation.indices
    assert torch.equal(placed(tiny_dataset, recipe=replace(RECIPE, seed=5)).validation.indices, held_out)
    assert not torch.equal(placed(tiny_dataset, recipe=replace(RECIPE, split_seed=5)).validation.indices, held_out)


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 30), (7, 4), (30, 1), (31, 0)])
def test_only_whole_batches_are_counted(tiny_dataset: Dataset, batch_size: int, steps: int) -> None:
    assert placed(tiny_dataset).steps_per_epoch(batch_size) == steps


@pytest.mark.parametrize(
    "transform", [InputTransform(), InputTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]
)
def test_pixels_are_normalised_as_by_torchvision(tiny_dataset: Dataset, transform: InputTransform) -> None:
    from torchvision.transforms import functional

    data = placed(tiny_dataset, transform=transform)
    images, labels = data.test.batch(torch.tensor([3, 0, 11]))
    for image, label, index in zip(images, labels.tolist(), [3, 0, 11], strict=True):
        pixels = tiny_dataset.test_images[index].permute(1, 2, 0).numpy()
        expected = functional.normalize(functional.to_tensor(pixels), list(transform.mean), list(transform.std))
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
        assert label == int(tiny_dataset.test_labels[index])


def test_known_pixels() -> None:
    """Black, white and a fifth of white, with mean 0.5 and standard deviation 0.25."""
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
    dataset = Dataset.from_arrays(
        name="x",
        uri="x",
        classes=("a",),
        train=(images.repeat(4, 1, 1, 1).numpy(), torch.zeros(4, dtype=torch.int64).numpy()),
        test=(images.numpy(), torch.zeros(1, dtype=torch.int64).numpy()),
    )
    pixels, _ = placed(dataset).test.batch(torch.tensor([0]))
    assert pixels.flatten().tolist() == pytest.approx([-2.0, 2.0, -1.2], abs=1e-6)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("augmentation", ["none", "flip", "flip+crop"])
def test_batches_have_the_requested_memory_format(
    tiny_dataset: Dataset, memory_format: torch.memory_format, augmentation: str
) -> None:
    part = placed(tiny_dataset, memory_format=memory_format).train
    images, labels = part.batch(torch.arange(6), augmentation, generator_for("augmentation", 0, 0, 0))
    assert images.is_contiguous(memory_format=memory_format)
    assert (tuple(images.shape), images.dtype, labels.dtype) == ((6, 3, 16, 16), torch.float32, torch.int64)


def test_the_memory_format_does_not_change_the_numbers(tiny_dataset: Dataset) -> None:
    one = placed(tiny_dataset).train.batch(torch.arange(6))[0]
    other = placed(tiny_dataset, memory_format=torch.channels_last).train.batch(torch.arange(6))[0]
    assert torch.equal(one, other)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 500])
def test_in_order_gives_every_image_of_the_part_once_and_in_order(tiny_dataset: Dataset, batch_size: int) -> None:
    part = placed(tiny_dataset).validation
    batches = list(part.in_order(batch_size))
    whole, labels = part.batch(torch.arange(len(part)))
    assert torch.equal(torch.cat([images for images, _ in batches]), whole)
    assert torch.equal(torch.cat([labels for _, labels in batches]), labels)
    assert torch.equal(labels, tiny_dataset.train_labels[part.indices])
    assert {len(images) for images, _ in batches[:-1]} <= {batch_size}


# -- split and order -------------------------------------------------------------------------------------------------


@given(images=st.integers(2, 300), fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_the_two_parts_are_disjoint_and_complete(images: int, fraction: float, seed: int) -> None:
    held_out = round(images * fraction)
    if not 0 < held_out < images:
        with pytest.raises(RecipeError):
            split_indices(images, fraction, seed)
        return
    train, validation = split_indices(images, fraction, seed)
    assert len(validation) == held_out
    assert sorted(train.tolist() + validation.tolist()) == list(range(images))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    assert train.dtype == validation.dtype == torch.int64


def test_cifar10_keeps_45000_images_for_training() -> None:
    train, validation = split_indices(50_000, 0.1, 0)
    assert (len(train), len(validation)) == (45_000, 5_000)


@given(seed=SEEDS, noise=st.integers(0, 1000))
def test_the_split_depends_on_its_seed_alone(seed: int, noise: int) -> None:
    first = split_indices(100, 0.2, seed)
    torch.manual_seed(noise)
    before = torch.get_rng_state()
    second = split_indices(100, 0.2, seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_each_split_seed_draws_validation_images_from_the_whole_set() -> None:
    """In an ImageFolder the first images are of one class."""
    assert len({tuple(split_indices(100, 0.2, seed)[1].tolist()) for seed in range(20)}) == 20
    _, validation = split_indices(1000, 0.1, 0)
    assert min(int(((validation >= start) & (validation < start + 250)).sum()) for start in range(0, 1000, 250)) >= 10


@pytest.mark.parametrize(("images", "fraction"), [(3, 0.1), (3, 0.9), (1, 0.5), (0, 0.5), (4, 0.01)])
def test_a_fraction_that_leaves_a_part_empty_is_rejected_in_one_line(images: int, fraction: float) -> None:
    with pytest.raises(RecipeError, match=f"validation_fraction {fraction} of {images} training images") as caught:
        split_indices(images, fraction, 0)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@given(images=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 1000))
def test_the_order_of_an_epoch_is_a_permutation_and_depends_on_seed_and_epoch_alone(
    images: int, seed: int, epoch: int
) -> None:
    order = epoch_order(images, seed, epoch)
    assert sorted(order.tolist()) == list(range(images))
    torch.manual_seed(epoch + 1)
    before = torch.get_rng_state()
    assert torch.equal(epoch_order(images, seed, epoch), order)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


# -- augmentation ------------------------------------------------------------------------------------------------


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = random_images(400)
    changed = augment(images, "flip", generator_for("augmentation", 0, 0, 0))
    mirrored = 0
    for before, after in zip(images, changed, strict=True):
        if not torch.equal(after, before):
            assert after.tolist() == [[row[::-1] for row in channel] for channel in before.tolist()]
            mirrored += 1
    assert 150 < mirrored < 250


def test_a_flip_swaps_left_and_right() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8).expand(8, 3, 3, 3)
    seen = {
        tuple(map(tuple, after[0].tolist())) for after in augment(image, "flip", generator_for("augmentation", 0, 0, 0))
    }
    assert seen == {((1, 2, 3), (4, 5, 6), (7, 8, 9)), ((3, 2, 1), (6, 5, 4), (9, 8, 7))}


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """The image shifted pixel by pixel, with black borders."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


def test_a_crop_shifts_every_image_by_its_own_offset_with_black_borders() -> None:
    image = random_images(1, side=6)[0]
    reach = range(-CROP_PADDING, CROP_PADDING + 1)
    known = {shifted(image, down, right).numpy().tobytes(): (down, right) for down in reach for right in reach}
    assert len(known) == 81
    images = image.expand(1500, -1, -1, -1)
    # The look-up fails for anything but one of the 81 shifts; all of them occur.
    found = [known[after.numpy().tobytes()] for after in random_crop(images, generator_for("augmentation", 0, 0, 0))]
    assert set(found) == set(known.values())


def test_flip_and_crop_are_combined() -> None:
    image = random_images(1, side=6)[0]
    reach = range(-CROP_PADDING, CROP_PADDING + 1)
    straight = {shifted(image, down, right).numpy().tobytes() for down in reach for right in reach}
    mirrored = {shifted(image.flip(2), down, right).numpy().tobytes() for down in reach for right in reach}
    results = augment(image.expand(300, -1, -1, -1), "flip+crop", generator_for("augmentation", 0, 0, 0))
    seen = {after.numpy().tobytes() for after in results}
    assert seen <= straight | mirrored
    assert len(seen & straight) > 20
    assert len(seen & mirrored) > 20


def test_a_black_border_is_normalised_as_black_pixels() -> None:
    white = torch.full((60, 3, 6, 6), 255, dtype=torch.uint8)
    one, shift = torch.full((1, 3, 1, 1), 1 / 255), torch.full((1, 3, 1, 1), 0.5)
    part = ImageSet(white, torch.zeros(60, dtype=torch.int64), torch.arange(60), one, shift, torch.contiguous_format)
    images, _ = part.batch(torch.arange(60), "flip+crop", generator_for("augmentation", 0, 0, 0))
    assert {round(value, 4) for value in images.unique().tolist()} == {-0.5, 0.5}


@pytest.mark.parametrize("augmentation", ["flip", "flip+crop"])
def test_augmentation_is_a_function_of_seed_epoch_and_batch_alone(tiny_dataset: Dataset, augmentation: str) -> None:
    part, positions = placed(tiny_dataset).train, torch.arange(30)

    def batch(*place: int) -> bytes:
        images, _ = part.batch(positions, augmentation, generator_for("augmentation", *place))
        return images.numpy().tobytes()

    first = batch(0, 0, 0)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert batch(0, 0, 0) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert len({first, batch(1, 0, 0), batch(0, 1, 0), batch(0, 0, 1)}) == 4


@pytest.mark.parametrize("augmentation", ["none", "flip", "flip+crop"])
def test_the_images_in_memory_are_unchanged(tiny_dataset: Dataset, augmentation: str) -> None:
    data = placed(tiny_dataset)
    before = data.train.images.clone()
    images, _ = data.train.batch(torch.arange(30), augmentation, generator_for("augmentation", 0, 0, 0))
    images.fill_(0)
    assert torch.equal(data.train.images, before)


def test_without_augmentation_nothing_is_drawn(tiny_dataset: Dataset) -> None:
    generator = generator_for("augmentation", 0, 0, 0)
    before = generator.get_state()
    placed(tiny_dataset).train.batch(torch.arange(3), "none", generator)
    assert torch.equal(generator.get_state(), before)
