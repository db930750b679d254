import pytest

from cnn_jobs.errors import (
    CnnJobsError,
    DivergedError,
    InterruptedRunError,
    NotShippedError,
    RecipeError,
    TrackingError,
    UserError,
)
from cnn_jobs.recipe import Planned, Recipe, exit_code, parse_seeds, parse_sweep, plan, run_all


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
def test_what_is_no_list_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--seeds is '.*', but must be a range or a list, as in 0-4"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["1,1", "0-4,2", "0-2,2-3"])
def test_a_seed_named_twice_is_refused(text: str) -> None:
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
def test_a_sweep_is_a_field_and_values_of_its_type(text: str, field: str, values: list[object]) -> None:
    name, parsed = parse_sweep(text)
    assert (name, parsed) == (field, values)
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize("text", ["", "lr", "=1", "learning_rate=1", "lr 1e-3"])
def test_a_sweep_over_no_field_is_refused_with_the_fields(text: str) -> None:
    with pytest.raises(UserError, match=r"must be FIELD=VALUE,... with a field of epochs, batch_size, .*split_seed"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("text", "kind"), [("lr=fast", "float"), ("epochs=1.5", "int"), ("epochs=", "int"), ("lr=1,,2", "float")]
)
def test_a_value_of_another_type_is_refused(text: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"must be of type {kind}"):
        parse_sweep(text)


def test_without_seeds_and_sweeps_there_is_one_run_without_a_label() -> None:
    recipe = Recipe(lr=0.1)
    assert plan(recipe) == [Planned("", recipe)]


def test_seeds_make_a_run_each() -> None:
    assert plan(Recipe(lr=0.1), "1-2") == [
        Planned("seed1", Recipe(lr=0.1, seed=1)),
        Planned("seed2", Recipe(lr=0.1, seed=2)),
    ]


def test_sweeps_and_seeds_make_a_grid_whose_last_axis_runs_fastest() -> None:
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


def test_every_recipe_is_checked_before_the_first_is_trained() -> None:
    with pytest.raises(RecipeError, match=r"lr is 0\.0"):
        plan(Recipe(), "0-4", ["lr=1e-3,0"])
    with pytest.raises(RecipeError, match=r"momentum is 0\.9, but the optimiser is adam"):
        plan(Recipe(momentum=0.9), sweeps=["optimizer=sgd,adam"])


def test_an_axis_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--sweep names one field twice"):
        plan(Recipe(), sweeps=["lr=1e-3", "lr=1e-4"])
    with pytest.raises(UserError, match="--sweep names one field twice"):
        plan(Recipe(), sweeps=["batch_size=1", "batch-size=2"])
    with pytest.raises(UserError, match=r"--seeds and --sweep seed=\.\.\. say the same"):
        plan(Recipe(), "0-1", ["seed=2,3"])


def test_a_value_named_twice_is_refused() -> None:
    """Two runs of one recipe and one name would be the same run twice."""
    with pytest.raises(UserError, match=r"--sweep is 'lr=1e-3,0\.001', which names a value twice"):
        plan(Recipe(), sweeps=["lr=1e-3,0.001"])


PLANNED = plan(Recipe(), "0-3")


def run_with(failures: dict[int, CnnJobsError]) -> tuple[list[int], list[int], list[CnnJobsError], list[str]]:
    """Seeds that were started, seeds that finished, errors, and the lines about them."""
    started: list[int] = []
    lines: list[str] = []

    def run_one(item: Planned) -> int:
        seed = item.recipe.seed
        started.append(seed)
        if seed in failures:
            raise failures[seed]
        return seed

    finished, errors = run_all(PLANNED, run_one, lines.append)
    return started, finished, errors, lines


def test_all_runs_are_run_in_order() -> None:
    assert run_with({}) == ([0, 1, 2, 3], [0, 1, 2, 3], [], [])


def test_a_run_that_fails_does_not_stop_the_others() -> None:
    failures: dict[int, CnnJobsError] = {1: DivergedError("it diverged"), 3: TrackingError("no answer")}
    started, finished, errors, lines = run_with(failures)
    assert (started, finished) == ([0, 1, 2, 3], [0, 2])
    assert errors == [failures[1], failures[3]]
    assert lines == ["seed1: it diverged", "seed3: no answer"]


def test_a_signal_stops_the_series() -> None:
    failures: dict[int, CnnJobsError] = {0: DivergedError("it diverged"), 2: InterruptedRunError("stopped by SIGTERM")}
    started, finished, errors, _ = run_with(failures)
    assert (started, finished) == ([0, 1, 2], [1])
    assert errors == [failures[0], failures[2]]


def test_an_error_that_is_none_of_ours_is_not_hidden() -> None:
    def broken(item: Planned) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_all(PLANNED, broken, print)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], 0),
        ([DivergedError()], 2),
        ([TrackingError()], 1),
        ([DivergedError(), RecipeError()], 2),
        ([DivergedError(), TrackingError()], 1),  # one of them may work another time
        ([InterruptedRunError()], 1),
        ([InterruptedRunError(saved=True)], 75),
        ([DivergedError(), InterruptedRunError(saved=True)], 75),  # the others of the series are still to come
        ([TrackingError(), InterruptedRunError(saved=True)], 75),
        ([NotShippedError("", kept=True)], 75),
        ([NotShippedError("", kept=True), DivergedError()], 75),
        ([NotShippedError("", kept=True), TrackingError()], 1),
        ([NotShippedError("", kept=False)], 1),
    ],
)
def test_the_exit_code_of_a_series(errors: list[CnnJobsError], code: int) -> None:
    assert exit_code(errors) == code
