"""The registry, compared with the tables of the course report."""

from dataclasses import replace

import pytest

from cnn_jobs.errors import RecipeError, UserError
from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform, Pool, ResNet18
from cnn_jobs.networks.table import describe, total_parameters
from cnn_jobs.recipe import FIELD_NAMES, Recipe
from cnn_jobs.tasks import TASKS, Reference, get_task

SMALL, LARGE = (32, 64, 128), (64, 128, 256)
PLAIN, OVERLAPPING = ((2, 2), (2, 2), (2, 2)), ((4, 2), (3, 2), (2, 2))
# Filters, kernel, padding, (kernel, stride) of the pools, their kind, BatchNorm, dropout, features after Flatten.
NETWORKS = {
    "task2": (SMALL, 5, 2, PLAIN, "max", False, 0.0, 2048),
    "task3-arch1": (SMALL, 5, 2, OVERLAPPING, "max", True, 0.0, 1152),
    "task3-arch2": (SMALL, 5, 2, PLAIN, "max", True, 0.4, 2048),
    "task3c-avgpool": (SMALL, 5, 2, PLAIN, "average", True, 0.0, 2048),
    "task3d-batchnorm": (SMALL, 5, 2, PLAIN, "max", True, 0.0, 2048),
    "task3d-plain": (SMALL, 5, 2, PLAIN, "max", False, 0.0, 2048),
    "task3e": (LARGE, 3, 1, OVERLAPPING, "max", True, 0.4, 2304),
}
REFERENCES = {
    "task2": Reference(val_loss=1.79, val_accuracy=0.737),
    "task3-arch1": Reference(train_loss=0.1665, train_accuracy=0.9441, val_accuracy=0.7962, test_accuracy=0.7799),
    "task3-arch2": Reference(train_loss=0.2950, train_accuracy=0.9062, val_accuracy=0.7892, test_accuracy=0.7789),
    "task3e": Reference(train_accuracy=0.91, val_accuracy=0.82, test_accuracy=0.814),
    "task4a": Reference(train_accuracy=0.99, val_accuracy=0.90, test_accuracy=0.90),
}


def test_every_task_of_the_report_is_in_the_registry_under_its_name() -> None:
    assert sorted(TASKS) == sorted([*NETWORKS, "task4a"])
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert all(task.title for task in TASKS.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_that_of_the_report(name: str) -> None:
    filters, kernel, padding, pools, kind, batch_norm, dropout, flattened = NETWORKS[name]
    blocks = tuple(
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
    network = get_task(name).network
    assert network == ConvNet(blocks=blocks, hidden=64, dropout=dropout)
    assert [layer.output for layer in describe(network) if layer.kind == "Flatten"] == [(flattened,)]
    assert get_task(name).transform == InputTransform(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_recipe_is_that_of_the_report(name: str) -> None:
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


def test_task4a_is_the_transfer_task_of_the_report() -> None:
    task = get_task("task4a")
    assert task.network == ResNet18(side=224)
    changes = {"epochs": 5, "batch_size": 32, "optimizer": "adam", "lr": 5e-4, "early_stop_count": 4}
    assert task.recipe == replace(Recipe(), **changes, weights="imagenet")
    assert task.transform == InputTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    layers = describe(task.network)
    # torchvision's 11,689,512, with a head for 10 classes instead of 1,000.
    assert total_parameters(layers) == 11_181_642
    assert total_parameters(layers, trained=True) == 8_393_728 + 5_130


@pytest.mark.parametrize("name", TASKS)
def test_the_reference_is_that_of_the_report(name: str) -> None:
    reference = get_task(name).reference
    assert replace(reference, note="") == REFERENCES.get(name, Reference())
    # Its loss is not comparable.
    assert ("softmax" in reference.note) == (name == "task2")


def test_task2_has_390410_parameters_layer_by_layer() -> None:
    layers = describe(get_task("task2").network)
    assert [layer.parameters for layer in layers if layer.parameters] == [2_432, 51_264, 204_928, 131_136, 650]
    assert total_parameters(layers) == 390_410


def test_an_unknown_task_is_rejected_with_the_list_of_tasks() -> None:
    with pytest.raises(UserError) as caught:
        get_task("task9")
    message = str(caught.value)
    assert "unknown task 'task9'" in message
    assert all(name in message for name in TASKS)
    assert "\n" not in message
    assert caught.value.exit_code == 2


# -- hashes ------------------------------------------------------------------------------------------------------------


def test_the_hash_of_a_recipe_covers_network_and_transform_but_not_the_title() -> None:
    hashes = {task.recipe_hash(replace(task.recipe, weights="none")) for task in TASKS.values()}
    assert len(hashes) == len(TASKS)
    plain, batch_norm = get_task("task3d-plain"), get_task("task3d-batchnorm")
    assert plain.recipe == batch_norm.recipe
    expected = plain.recipe_hash(plain.recipe)
    assert batch_norm.recipe_hash(plain.recipe) != expected
    assert replace(plain, transform=InputTransform(mean=(0.4, 0.5, 0.5))).recipe_hash(plain.recipe) != expected
    assert replace(plain, title="Another title").recipe_hash(plain.recipe) == expected


def test_hashes_depend_on_the_digest_of_the_weights_and_not_on_their_place() -> None:
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


def test_weights_are_rejected_for_a_network_without_pretrained_weights() -> None:
    get_task("task4a").check(get_task("task4a").recipe)
    get_task("task2").check(Recipe())
    with pytest.raises(RecipeError, match="weights is 'imagenet', but task2 ") as caught:
        get_task("task2").check(Recipe(weights="imagenet"))
    assert caught.value.exit_code == 2


CHANGES = {
    "epochs": 3, "batch_size": 32, "optimizer": "adam", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1,
    "early_stop_count": 0, "validations_per_epoch": 1, "validation_fraction": 0.2, "augmentation": "flip",
    "precision": "bf16", "seed": 1, "split_seed": 1,
}  # fmt: skip


def test_a_group_ignores_only_the_seed() -> None:
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
