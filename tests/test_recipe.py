import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.errors import RecipeError
from cnn_jobs.recipe import AUGMENTATIONS, FIELD_NAMES, PRECISIONS, Recipe, digest_of

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
# Momentum belongs to SGD alone.
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
def test_a_value_out_of_range_is_refused_with_field_value_and_rule(field: str, value: object, rule: str) -> None:
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
def test_the_last_value_inside_a_range_is_allowed(field: str, value: object) -> None:
    assert getattr(Recipe(**{field: value}), field) == value


def test_a_rule_holds_for_every_field_and_for_changes_by_replace() -> None:
    assert set(VALUES) == set(FIELD_NAMES)
    with pytest.raises(RecipeError, match="epochs is 0"):
        replace(Recipe(), epochs=0)


def test_momentum_is_refused_for_adam() -> None:
    with pytest.raises(RecipeError, match=r"momentum is 0\.9, but the optimiser is adam.*--optimizer sgd") as caught:
        Recipe(optimizer="adam", momentum=0.9)
    assert caught.value.exit_code == 2
    assert Recipe(optimizer="adam").momentum == 0
    assert Recipe(optimizer="sgd", momentum=0.9).momentum == 0.9


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]


def test_the_defaults_are_those_of_the_hand_out() -> None:
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
def test_any_recipe_survives_as_dict_json_and_replace(recipe: Recipe) -> None:
    values = recipe.as_dict()
    assert tuple(values) == FIELD_NAMES
    assert Recipe(**values) == recipe
    assert Recipe(**json.loads(json.dumps(values))) == recipe
    assert replace(recipe) == recipe


@given(RECIPES, st.data())
def test_the_digest_changes_with_any_one_field(recipe: Recipe, data: st.DataObject) -> None:
    values = recipe.as_dict()
    name = data.draw(st.sampled_from([name for name in FIELD_NAMES if name not in ("optimizer", "momentum")]))
    other = replace(recipe, **{name: data.draw(VALUES[name].filter(lambda value: value != values[name]))})
    assert digest_of(other.as_dict()) != digest_of(values)


def test_the_digest_changes_with_optimiser_and_momentum() -> None:
    recipes = [Recipe(), Recipe(optimizer="adam"), Recipe(momentum=0.5)]
    assert len({digest_of(recipe.as_dict()) for recipe in recipes}) == 3


@given(st.dictionaries(KEYS, st.integers() | st.dictionaries(KEYS, st.integers(), max_size=3), max_size=4))
def test_the_digest_does_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    def backwards(value: Any) -> Any:
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert digest_of(backwards(content)) == digest_of(content)


def test_the_digest_of_a_known_content() -> None:
    # printf '{"a":1,"b":[2.5,"x"]}' | sha256sum
    assert digest_of({"b": [2.5, "x"], "a": 1}) == "5f097a2417b218fb6b0f143c2f2d4010731048db11200c7583048f684fc30222"


def test_the_digest_refuses_what_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"lr": math.nan})
