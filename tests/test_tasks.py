"""The registry against the tables of the course report, written out here by hand."""

from dataclasses import replace

import pytest

from cnn_jobs.errors import RecipeError, UserError
from cnn_jobs.networks.spec import ConvBlock, InputTransform, Pool, ResNet18
from cnn_jobs.networks.table import describe, total_parameters
from cnn_jobs.recipe import FIELD_NAMES, Recipe
from cnn_jobs.tasks import TASKS, get_task

NAMES = [
    "task2",
    "task3-arch1",
    "task3-arch2",
    "task3c-avgpool",
    "task3d-batchnorm",
    "task3d-plain",
    "task3e",
]
SMALL_IMAGES = list(NAMES)
NAMES.append("task4a")
SMALL, LARGE = (32, 64, 128), (64, 128, 256)
PLAIN, OVERLAPPING = ((2, 2), (2, 2), (2, 2)), ((4, 2), (3, 2), (2, 2))


def test_every_task_of_the_report_is_in_the_registry_under_its_own_name() -> None:
    assert sorted(TASKS) == sorted(NAMES)
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert all(task.title for task in TASKS.values())


@pytest.mark.parametrize(
    ("name", "filters", "kernel", "padding", "pools", "kind", "batch_norm", "dropout", "flattened"),
    [
        ("task2", SMALL, 5, 2, PLAIN, "max", False, 0.0, 2048),
        ("task3-arch1", SMALL, 5, 2, OVERLAPPING, "max", True, 0.0, 1152),
        ("task3-arch2", SMALL, 5, 2, PLAIN, "max", True, 0.4, 2048),
        ("task3c-avgpool", SMALL, 5, 2, PLAIN, "average", True, 0.0, 2048),
        ("task3d-batchnorm", SMALL, 5, 2, PLAIN, "max", True, 0.0, 2048),
        ("task3d-plain", SMALL, 5, 2, PLAIN, "max", False, 0.0, 2048),
        ("task3e", LARGE, 3, 1, OVERLAPPING, "max", True, 0.4, 2304),
    ],
)
def test_the_network_is_the_one_of_the_table(
    name: str,
    filters: tuple[int, ...],
    kernel: int,
    padding: int,
    pools: tuple[tuple[int, int], ...],
    kind: str,
    batch_norm: bool,
    dropout: float,
    flattened: int,
) -> None:
    network = get_task(name).network
    assert network.blocks == tuple(
        ConvBlock(
            filters=count,
            kernel=kernel,
            padding=padding,
            stride=1,
            pool=Pool(kernel=size, stride=stride, kind=kind),
            batch_norm=batch_norm,
        )
        for count, (size, stride) in zip(filters, pools, strict=True)
    )
    assert (network.hidden, network.dropout) == (64, dropout)
    assert [layer.output for layer in describe(network) if layer.kind == "Flatten"] == [(flattened,)]


@pytest.mark.parametrize("name", SMALL_IMAGES)
def test_the_recipe_is_the_one_of_the_table(name: str) -> None:
    shared = {
        "epochs": 10,
        "batch_size": 64,
        "momentum": 0.0,
        "validations_per_epoch": 2,
        "validation_fraction": 0.1,
        "augmentation": "none",
        "weights": "none",
        "precision": "fp32",
        "seed": 0,
        "split_seed": 0,
    }
    own = {"optimizer": "adam", "lr": 7e-4, "weight_decay": 2e-5, "early_stop_count": 0}
    if name == "task2":
        own = {"optimizer": "sgd", "lr": 5e-2, "weight_decay": 0.0, "early_stop_count": 4}
    assert get_task(name).recipe.as_dict() == {**shared, **own}


def test_task4a_is_the_transfer_of_the_hand_out() -> None:
    task = get_task("task4a")
    assert task.network == ResNet18(side=224)
    changes = {"epochs": 5, "batch_size": 32, "optimizer": "adam", "lr": 5e-4, "early_stop_count": 4}
    assert task.recipe == replace(Recipe(), **changes, weights="imagenet")
    assert task.transform == InputTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    layers = describe(task.network)
    assert (
        total_parameters(layers) == 11_181_642
    )  # torchvision's 11,689,512, with a head for 10 classes in place of 1,000
    assert total_parameters(layers, trained=True) == 8_393_728 + 5_130


@pytest.mark.parametrize("name", SMALL_IMAGES)
def test_pixels_are_normalised_with_a_half_and_a_quarter(name: str) -> None:
    assert get_task(name).transform == InputTransform(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("name", "train_loss", "train_accuracy", "val_accuracy", "test_accuracy", "val_loss"),
    [
        ("task2", None, None, 0.737, None, 1.79),
        ("task3-arch1", 0.1665, 0.9441, 0.7962, 0.7799, None),
        ("task3-arch2", 0.2950, 0.9062, 0.7892, 0.7789, None),
        ("task3c-avgpool", None, None, None, None, None),
        ("task3d-batchnorm", None, None, None, None, None),
        ("task3d-plain", None, None, None, None, None),
        ("task3e", None, 0.91, 0.82, 0.814, None),
        ("task4a", None, 0.99, 0.90, 0.90, None),
    ],
)
def test_the_reference_is_the_one_of_the_table(
    name: str,
    train_loss: float | None,
    train_accuracy: float | None,
    val_accuracy: float | None,
    test_accuracy: float | None,
    val_loss: float | None,
) -> None:
    reference = get_task(name).reference
    assert (reference.train_loss, reference.train_accuracy) == (train_loss, train_accuracy)
    assert (reference.val_loss, reference.val_accuracy) == (val_loss, val_accuracy)
    assert reference.test_accuracy == test_accuracy


def test_the_reference_of_task2_says_why_its_loss_is_not_comparable() -> None:
    assert "softmax" in get_task("task2").reference.note


def test_task2_has_390410_parameters_layer_by_layer() -> None:
    layers = describe(get_task("task2").network)
    assert [layer.parameters for layer in layers if layer.parameters] == [2_432, 51_264, 204_928, 131_136, 650]
    assert total_parameters(layers) == 390_410


def test_an_unknown_task_is_refused_with_the_list_of_valid_ones() -> None:
    with pytest.raises(UserError) as caught:
        get_task("task9")
    message = str(caught.value)
    assert "unknown task 'task9'" in message
    assert all(name in message for name in NAMES)
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_the_hash_of_a_recipe_holds_the_network_too() -> None:
    hashes = {task.recipe_hash(replace(task.recipe, weights="none")) for task in TASKS.values()}
    assert len(hashes) == len(TASKS)
    plain, batch_norm = get_task("task3d-plain"), get_task("task3d-batchnorm")
    assert plain.recipe == batch_norm.recipe
    assert plain.recipe_hash(plain.recipe) != batch_norm.recipe_hash(plain.recipe)


def test_the_hash_of_a_recipe_holds_the_transform_too() -> None:
    task = get_task("task2")
    other = replace(task, transform=InputTransform(mean=(0.4, 0.5, 0.5)))
    assert task.recipe_hash(task.recipe) != other.recipe_hash(task.recipe)


def test_the_hash_of_a_recipe_does_not_hold_words() -> None:
    task = get_task("task2")
    assert replace(task, title="Other words").recipe_hash(task.recipe) == task.recipe_hash(task.recipe)


def test_weights_count_by_their_digest_and_not_by_their_place() -> None:
    task = get_task("task4a")
    here, there = replace(task.recipe, weights="a.pth"), replace(task.recipe, weights="s3://bucket/b.pth")
    assert task.recipe_hash(here, "d1") == task.recipe_hash(there, "d1") != task.recipe_hash(here, "d2")
    assert task.group_hash(here, "data", "d1") == task.group_hash(replace(there, seed=3), "data", "d1")
    assert task.group_hash(here, "data", "d1") != task.group_hash(here, "data", "d2")
    none = replace(task.recipe, weights="none")
    assert task.recipe_hash(none) != task.recipe_hash(here, "d1")
    for recipe, digest in ((here, ""), (none, "d1")):
        with pytest.raises(ValueError, match="digest"):
            task.recipe_hash(recipe, digest)


def test_weights_are_refused_where_a_network_has_none() -> None:
    get_task("task4a").check(get_task("task4a").recipe)
    get_task("task2").check(Recipe())
    with pytest.raises(RecipeError, match="weights is 'imagenet', but task2 begins with none") as caught:
        get_task("task2").check(Recipe(weights="imagenet"))
    assert caught.value.exit_code == 2


CHANGES = {
    "epochs": 3,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.1,
    "early_stop_count": 0,
    "validations_per_epoch": 1,
    "validation_fraction": 0.2,
    "augmentation": "flip",
    "precision": "bf16",
    "seed": 1,
    "split_seed": 1,
}


def test_a_group_ignores_the_seed_and_nothing_else() -> None:
    task, recipe = get_task("task2"), Recipe()
    assert {*CHANGES, "weights"} == set(FIELD_NAMES)
    same = {
        name
        for name, value in CHANGES.items()
        if task.group_hash(replace(recipe, **{name: value}), "digest") == task.group_hash(recipe, "digest")
    }
    assert same == {"seed"}
    assert task.group_hash(recipe, "other digest") != task.group_hash(recipe, "digest")
    assert task.recipe_hash(replace(recipe, seed=1)) != task.recipe_hash(recipe)
