"""Hashes of recipes: those of existing runs stay, also when ``Recipe`` gets a new field."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass, replace

import pytest

from cnn_jobs.recipe import ALWAYS_HASHED, FIELD_NAMES, Recipe, _option
from cnn_jobs.tasks import TASKS, Task

# recipe_hash and group_hash at commit a4698c6, on data of digest ddd..., with weights of digest ccc... where a task has
# some.
HASHES = {
    "task2": (
        "69b6734ca23572956a6b1e3a674b54740aed2da8cc7a6c9a26a27b0e9cd8021d",
        "86768c9348c123b910eee1aa5f170019bac7262a1938f80fb4488a95e25e0579",
    ),
    "task3-arch1": (
        "acd09d31d10f504bbd6b76fe893226b94404b7bc8d49ff6f730eaaf20ec04bce",
        "8e25241eececf75ba6902cbd71d4ed6f90d17ca1e3d0a25e60448e92ee23479e",
    ),
    "task3-arch2": (
        "9f15a34a08ff7d6b969e36a68a689a7077eb9c03368344ccc97ca2be7c1488a8",
        "40fd8d4d9c49f7c8ff92ddb672d38aaf3e6fbbd6ffd7cc1dcf3cf54b19c4237f",
    ),
    "task3c-avgpool": (
        "c1f21fabc07aeb90217637f7047cf0a5a69a0c118a415c2dc6a716e1d9556878",
        "bca227c5e2a920264ee1fae538494a73b4f3fb700f9cf8ed77b6191b0dd1e3e6",
    ),
    "task3d-batchnorm": (
        "c1215a9c544abc7b3d5496757e3437ffb214ccf31569aa64c341a7b55f9271b0",
        "3ed47bf95d47311b6b78bf9d52b4f41a60e47c4112d21d46c731c1a9478714ed",
    ),
    "task3d-plain": (
        "e1df62d03a43329857e35c40e5bf9bb6793483bdb813fdf995174942bb944a75",
        "114c32544367ec2711c09976f860dd0689516b1f5b70841b953a54c7ef5e37e2",
    ),
    "task3e": (
        "1d8f92c7a5100a5ad2bac6da5099b464b73a3305a5c889f7b974ad9f7c771037",
        "78ce63ab41e2471fd0dba93ef548e0b69fdd2c5914951d6fa9a3d736525ca315",
    ),
    "task4a": (
        "7b8c746d5ff74339fc7c0f298f86f26cc5d2d2a39e8639c7f2667829bbb01ecc",
        "aaf8e86ac178cf8fe4423926f09a1783edd34eda7f2356f2cdabc12e05b5d368",
    ),
}
SMOOTHED = make_dataclass(
    "Smoothed", [("label_smoothing", float, _option(0.0, "An imagined field."))], bases=(Recipe,), frozen=True
)


@dataclass(frozen=True, kw_only=True)
class Rescheduled(Recipe):
    """A field whose default changed after it was introduced."""

    schedule: str = _option("cosine", "An imagined field.", introduced_as="constant")


def hashes(task: Task, recipe: Recipe) -> tuple[str, str]:
    weights = "" if recipe.weights == "none" else "c" * 64
    return task.recipe_hash(recipe, weights), task.group_hash(recipe, "d" * 64, weights)


def test_every_task_has_its_hashes() -> None:
    assert {name: hashes(task, task.recipe) for name, task in TASKS.items()} == HASHES


def test_the_fields_of_a4698c6_are_always_hashed() -> None:
    assert set(ALWAYS_HASHED) <= set(FIELD_NAMES)
    assert set(Recipe().hashed()) == set(ALWAYS_HASHED)


@pytest.mark.parametrize("name", HASHES)
def test_a_new_field_at_its_default_changes_no_hash(name: str) -> None:
    task = TASKS[name]
    assert hashes(task, SMOOTHED(**task.recipe.as_dict())) == HASHES[name]


@pytest.mark.parametrize("name", HASHES)
def test_a_new_field_with_another_value_changes_both_hashes(name: str) -> None:
    task = TASKS[name]
    changed = hashes(task, SMOOTHED(**task.recipe.as_dict(), label_smoothing=0.1))
    assert not set(changed) & set(HASHES[name])


def test_a_changed_default_is_hashed() -> None:
    task = TASKS["task2"]
    at_default = Rescheduled(**task.recipe.as_dict())
    assert hashes(task, replace(at_default, schedule="constant")) == HASHES["task2"]
    assert not set(hashes(task, at_default)) & set(HASHES["task2"])
