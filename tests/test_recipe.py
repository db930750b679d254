"""Recipes: the range of each field, their digest, and the series of runs around one."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.errors import RecipeError, UserError
from cnn_jobs.recipe import (
    AUGMENTATIONS,
    FIELD_NAMES,
    PRECISIONS,
    Planned,
    Recipe,
    derived_seed,
    digest_of,
    parse_seeds,
    parse_sweep,
    plan,
)

SEEDS = st.integers(0, 2**63 - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "epochs": st.integers(1, 10**6),
    "batch_size": st.integers(1, 10**6),
    "optimizer": st.just("sgd"),
    "lr": st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False),
    "momentum": st.floats(0, 1, exclude_max=True),
    "weight_decay": st.floats(0, allow_nan=False, allow_infinity=False),
    "early_stop_count": st.just(0) | st.integers(2, 1000),
    "validations_per_epoch": st.integers(1, 1000),
    "validation_fraction": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "augmentation": st.sampled_from(AUGMENTATIONS),
    "weights": st.sampled_from(["none", "imagenet", "some/file.pth", "s3://bucket/key.pth"]),
    "precision": st.sampled_from(PRECISIONS),
    "seed": SEEDS,
    "split_seed": SEEDS,
}
# Only SGD has momentum.
RECIPES = st.builds(Recipe, **VALUES) | st.builds(
    Recipe, **{**VALUES, "optimizer": st.just("adam"), "momentum": st.just(0.0)}
)


KEYS = st.text(max_size=3)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", -1, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("optimizer", "rmsprop", "one of sgd, adam"),
        ("optimizer", "", "one of sgd, adam"),
        ("lr", 0.0, "a finite number above 0"),
        ("lr", -1e-9, "a finite number above 0"),
        ("lr", math.nan, "a finite number above 0"),
        ("lr", math.inf, "a finite number above 0"),
        ("lr", -math.inf, "a finite number above 0"),
        ("momentum", -0.1, "at least 0 and below 1"),
        ("momentum", 1.0, "at least 0 and below 1"),
        ("momentum", math.nan, "at least 0 and below 1"),
        ("weight_decay", -1e-9, "a finite number of at least 0"),
        ("weight_decay", math.inf, "a finite number of at least 0"),
        ("early_stop_count", 1, "0 (never) or at least 2"),
        ("early_stop_count", -1, "0 (never) or at least 2"),
        ("validations_per_epoch", 0, "at least 1"),
        ("validation_fraction", 0.0, "above 0 and below 1"),
        ("validation_fraction", 1.0, "above 0 and below 1"),
        ("validation_fraction", math.nan, "above 0 and below 1"),
        ("augmentation", "rotate", "one of none, flip, flip+crop"),
        ("weights", "", "imagenet, none, a file or s3://bucket/key"),
        ("precision", "fp16", "one of fp32, bf16"),
        ("seed", -1, "at least 0 and below 2**63"),
        ("seed", 2**63, "at least 0 and below 2**63"),
        ("split_seed", -1, "at least 0 and below 2**63"),
        ("split_seed", 2**63, "at least 0 and below 2**63"),
    ],
)
def test_error_names_field_value_and_rule(field: str, value: object, rule: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} is {value}, but must be {rule}; ")
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 1),
        ("batch_size", 1),
        ("lr", 5e-324),
        ("momentum", 0.0),
        ("momentum", 0.999),
        ("weight_decay", 0.0),
        ("early_stop_count", 0),
        ("early_stop_count", 2),
        ("validations_per_epoch", 1),
        ("seed", 0),
        ("seed", 2**63 - 1),
    ],
)
def test_limits_of_a_range_are_allowed(field: str, value: object) -> None:
    assert getattr(Recipe(**{field: value}), field) == value


def test_replaced_fields_are_checked() -> None:
    assert set(VALUES) == set(FIELD_NAMES)
    with pytest.raises(RecipeError, match="epochs is 0"):
        replace(Recipe(), epochs=0)


def test_adam_has_no_momentum() -> None:
    with pytest.raises(RecipeError, match=r"momentum is 0\.9, but the optimiser is adam.*--optimizer sgd") as caught:
        Recipe(optimizer="adam", momentum=0.9)
    assert caught.value.exit_code == 2
    assert Recipe(optimizer="adam").momentum == 0
    assert Recipe(optimizer="sgd", momentum=0.9).momentum == 0.9


def test_defaults_are_those_of_the_hand_out() -> None:
    assert Recipe().as_dict() == {
        "epochs": 10,
        "batch_size": 64,
        "optimizer": "sgd",
        "lr": 5e-2,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "early_stop_count": 4,
        "validations_per_epoch": 2,
        "validation_fraction": 0.1,
        "augmentation": "none",
        "weights": "none",
        "precision": "fp32",
        "seed": 0,
        "split_seed": 0,
    }


@given(RECIPES)
def test_recipe_survives_dict_json_and_replace(recipe: Recipe) -> None:
    values = recipe.as_dict()
    assert tuple(values) == FIELD_NAMES
    assert Recipe(**values) == recipe
    assert Recipe(**json.loads(json.dumps(values))) == recipe
    assert replace(recipe) == recipe


@given(RECIPES, st.data())
def test_digest_depends_on_every_field(recipe: Recipe, data: st.DataObject) -> None:
    values = recipe.as_dict()
    name = data.draw(st.sampled_from([name for name in FIELD_NAMES if name not in ("optimizer", "momentum")]))
    other = replace(recipe, **{name: data.draw(VALUES[name].filter(lambda value: value != values[name]))})
    assert digest_of(other.as_dict()) != digest_of(values)


def test_digest_depends_on_optimiser_and_momentum() -> None:
    recipes = [Recipe(), Recipe(optimizer="adam"), Recipe(momentum=0.5)]
    assert len({digest_of(recipe.as_dict()) for recipe in recipes}) == 3


@given(st.dictionaries(KEYS, st.integers() | st.dictionaries(KEYS, st.integers(), max_size=3), max_size=4))
def test_digest_does_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    def reverse(value: Any) -> Any:
        return {key: reverse(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert digest_of(reverse(content)) == digest_of(content)


def test_digest_of_known_content() -> None:
    # printf '{"a":1,"b":[2.5,"x"]}' | sha256sum
    assert digest_of({"b": [2.5, "x"], "a": 1}) == "5f097a2417b218fb6b0f143c2f2d4010731048db11200c7583048f684fc30222"


def test_digest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"lr": math.nan})


@given(st.text(max_size=5), st.lists(st.integers(0, 10**6), max_size=3))
def test_a_derived_seed_is_valid_for_torch(purpose: str, numbers: list[int]) -> None:
    assert 0 <= derived_seed(purpose, *numbers) < 2**63


def test_derived_seeds_differ_by_purpose_and_numbers_and_never_change() -> None:
    arguments = [("order", 1, 2), ("order", 2, 1), ("order", 12), ("order", 1), ("split", 1), ("order",)]
    assert len({derived_seed(*entry) for entry in arguments}) == len(arguments)
    # Recorded runs depend on it: the first eight bytes of `printf weights:0 | sha256sum`, halved.
    assert derived_seed("weights", 0) == 0x621AFD56226DBB0A >> 1


# -- series ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("3-3", [3]),
        ("0,2,5-7", [0, 2, 5, 6, 7]),
        ("7,1", [7, 1]),
        (" 1 , 2-3 ", [1, 2, 3]),
    ],
)
def test_seeds_are_ranges_and_lists(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", ",1", "4-0", "-1", "1-2-3", "1.5", "0..4", "1 2", "0x1"])
def test_invalid_seeds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--seeds is '.*', but must be a range or a list, as in 0-4"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["1,1", "0-4,2", "0-2,2-3"])
def test_repeated_seed_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names a seed twice"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("lr=1e-3,1e-4", "lr", [0.001, 0.0001]),
        ("batch_size=32", "batch_size", [32]),
        ("batch-size=32, 64", "batch_size", [32, 64]),
        ("optimizer=sgd,adam", "optimizer", ["sgd", "adam"]),
        ("augmentation=flip+crop", "augmentation", ["flip+crop"]),
    ],
)
def test_sweep_is_a_field_and_values_of_its_type(text: str, field: str, values: list[object]) -> None:
    name, parsed = parse_sweep(text)
    assert (name, parsed) == (field, values)
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize("text", ["", "lr", "=1", "learning_rate=1", "lr 1e-3"])
def test_sweep_without_a_field_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must be FIELD=VALUE,... with a field of epochs, batch_size, .*split_seed"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("text", "kind"), [("lr=fast", "float"), ("epochs=1.5", "int"), ("epochs=", "int"), ("lr=1,,2", "float")]
)
def test_sweep_value_of_another_type_is_refused(text: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"must be of type {kind}"):
        parse_sweep(text)


def test_single_run_has_no_label() -> None:
    recipe = Recipe(lr=0.1)
    assert plan(recipe) == [Planned("", recipe)]


def test_sweeps_and_seeds_make_a_grid() -> None:
    """The last axis varies fastest."""
    planned = plan(Recipe(), "0-1", ["lr=1e-3,0.1", "batch-size=32,64"])
    assert [item.label for item in planned] == [
        "lr0.001-batch_size32-seed0",
        "lr0.001-batch_size32-seed1",
        "lr0.001-batch_size64-seed0",
        "lr0.001-batch_size64-seed1",
        "lr0.1-batch_size32-seed0",
        "lr0.1-batch_size32-seed1",
        "lr0.1-batch_size64-seed0",
        "lr0.1-batch_size64-seed1",
    ]
    assert planned[3].recipe == Recipe(lr=0.001, batch_size=64, seed=1)


def test_every_recipe_of_a_grid_is_checked() -> None:
    with pytest.raises(RecipeError, match=r"lr is 0\.0"):
        plan(Recipe(), "0-4", ["lr=1e-3,0"])
    with pytest.raises(RecipeError, match=r"momentum is 0\.9, but the optimiser is adam"):
        plan(Recipe(momentum=0.9), sweeps=["optimizer=sgd,adam"])


def test_repeated_axis_is_refused() -> None:
    with pytest.raises(UserError, match="--sweep names one field twice"):
        plan(Recipe(), sweeps=["lr=1e-3", "lr=1e-4"])
    with pytest.raises(UserError, match="--sweep names one field twice"):
        plan(Recipe(), sweeps=["batch_size=1", "batch-size=2"])
    with pytest.raises(UserError, match=r"--seeds and --sweep seed=\.\.\. mean the same"):
        plan(Recipe(), "0-1", ["seed=2,3"])


def test_repeated_value_is_refused() -> None:
    """Two runs would have the same recipe and name."""
    with pytest.raises(UserError, match=r"--sweep is 'lr=1e-3,0\.001', which names a value twice"):
        plan(Recipe(), sweeps=["lr=1e-3,0.001"])
