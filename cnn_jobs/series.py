"""Several runs of one task, one after another: seeds, and grids over recipe fields."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_type_hints

from cnn_jobs.errors import CONTINUE, CnnJobsError, InterruptedRunError, UserError
from cnn_jobs.recipe import FIELD_NAMES, Recipe

Result = TypeVar("Result")


@dataclass(frozen=True)
class Planned:
    """One run of a series; ``label`` says what is its own, as in ``lr0.001-seed2``."""

    label: str
    recipe: Recipe


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,5-7`` to seeds, in that order. Raises ``UserError`` for anything else, and for a repetition."""
    return parse_numbers(text, "--seeds", "0,2,5-7", what="a seed")


def parse_numbers(text: str, option: str, example: str, *, what: str = "a number") -> list[int]:
    """Numbers and ranges, in their order. Raises ``UserError`` for anything else, and for a repetition."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"{option} is '{text}', but must be a range or a list, as in 0-4 or {example}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{option} is '{text}', which names {what} twice; name each once")
    return numbers


def parse_sweep(text: str) -> tuple[str, list[object]]:
    """``lr=1e-3,1e-4`` to the field's name and its values.

    Raises ``UserError`` for an unknown field or value, and for a repetition.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in FIELD_NAMES:
        raise UserError(f"--sweep is '{text}', but must be FIELD=VALUE,... with a field of {', '.join(FIELD_NAMES)}")
    kind = get_type_hints(Recipe)[name]
    try:
        parsed = [kind(value.strip()) for value in values.split(",")]
    except ValueError:
        raise UserError(f"--sweep is '{text}', but every value of {name} must be of type {kind.__name__}") from None
    if len(set(parsed)) < len(parsed):
        raise UserError(f"--sweep is '{text}', which names a value twice; name each once")
    return name, parsed


def plan(recipe: Recipe, seeds: str = "", sweeps: Sequence[str] = ()) -> list[Planned]:
    """The grid of all sweeps and seeds around ``recipe``; one run without a label where there are neither.

    Every recipe is checked here, before the first is trained.
    """
    axes = dict(parse_sweep(sweep) for sweep in sweeps)
    if len(axes) < len(sweeps):
        raise UserError("--sweep names one field twice; put all its values into one, as in lr=1e-3,1e-4")
    if seeds:
        if "seed" in axes:
            raise UserError("--seeds and --sweep seed=... say the same; use one of them")
        axes["seed"] = list(parse_seeds(seeds))
    if not axes:
        return [Planned("", recipe)]
    planned = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        label = "-".join(f"{name}{value}" for name, value in changes.items())
        planned.append(Planned(label, replace(recipe, **changes)))  # type: ignore[arg-type]
    return planned


def pick(planned: Sequence[Planned], point: int) -> Planned:
    """The run of this number, counted from 0: what an index of an Indexed Job trains. Raises ``UserError``."""
    if point >= len(planned):
        raise UserError(f"--point is {point}, but --seeds and --sweep give {len(planned)} runs, counted from 0")
    return planned[point]


def run_all(
    planned: Sequence[Planned],
    run_one: Callable[[Planned], Result],
    report_error: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> tuple[list[Result], list[CnnJobsError]]:
    """Runs one after another; one that fails does not stop the others, a signal does: in a run, or as ``check``, called
    before each, raises ``InterruptedRunError``."""
    results: list[Result] = []
    errors: list[CnnJobsError] = []
    for item in planned:
        try:
            check()
            results.append(run_one(item))
        except InterruptedRunError as error:
            errors.append(error)
            break
        except CnnJobsError as error:
            errors.append(error)
            report_error(f"{item.label}: {error}")
    return results, errors


def exit_code(errors: Sequence[CnnJobsError]) -> int:
    """Of a series: 0 if none failed; that of the signal which cut it short; else 1 if one failed that may work another
    time, 75 if one only has to be called again, 2 if none of the failed ones can work."""
    codes = {error.exit_code for error in errors}
    if errors and isinstance(errors[-1], InterruptedRunError):
        return errors[-1].exit_code
    return next((code for code in (1, CONTINUE, 2) if code in codes), 0)
