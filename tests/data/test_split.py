import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.data.split import derived_seed, epoch_order, generator_for, split_indices
from cnn_jobs.errors import RecipeError

SEEDS = st.integers(0, 2**63 - 1)


@given(images=st.integers(2, 300), fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_the_two_parts_share_no_image_and_miss_none(images: int, fraction: float, seed: int) -> None:
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


def test_another_split_seed_is_another_split() -> None:
    chosen = {tuple(split_indices(100, 0.2, seed)[1].tolist()) for seed in range(20)}
    assert len(chosen) == 20


def test_the_held_out_images_come_from_everywhere() -> None:
    """Not the first ones: in an ImageFolder these are of one class."""
    _, validation = split_indices(1000, 0.1, 0)
    assert min(int(((validation >= start) & (validation < start + 250)).sum()) for start in range(0, 1000, 250)) >= 10


@pytest.mark.parametrize(("images", "fraction"), [(3, 0.1), (3, 0.9), (1, 0.5), (0, 0.5), (4, 0.01)])
def test_a_fraction_that_leaves_a_part_empty_is_refused_in_one_line(images: int, fraction: float) -> None:
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


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(st.text(max_size=5), st.lists(st.integers(0, 10**6), max_size=3))
def test_a_derived_seed_is_one_that_torch_takes(purpose: str, numbers: list[int]) -> None:
    seed = derived_seed(purpose, *numbers)
    assert 0 <= seed < 2**63
    assert generator_for(purpose, *numbers).initial_seed() == seed


def test_derived_seeds_are_told_apart_by_purpose_and_by_every_number() -> None:
    arguments = [("order", 1, 2), ("order", 2, 1), ("order", 12), ("order", 1), ("split", 1), ("order",)]
    assert len({derived_seed(*entry) for entry in arguments}) == len(arguments)


def test_a_derived_seed_stays_what_it_is() -> None:
    """Recorded runs depend on it: the first eight bytes of `printf weights:0 | sha256sum`, halved."""
    assert derived_seed("weights", 0) == 0x621AFD56226DBB0A >> 1
