"""Estimates and differences as the cells of a table and as words."""

from __future__ import annotations

from cnn_jobs.reporting.document import NO_VALUE, Cell, Number, Word, Words
from cnn_jobs.reporting.groups import Group
from cnn_jobs.reporting.statistics import Difference, Estimate

PART_NAMES = {"train": "training", "val": "validation", "test": "test"}


def estimate_cell(group: str, measure: str, found: Estimate | None, form: str) -> Cell:
    """Mean; below it standard deviation and interval, where there are any."""
    if found is None:
        return Cell.of(NO_VALUE)
    lines: list[Words] = [(Number(group, measure, "mean", found.mean, form),)]
    spread = "spread" if form in ("percent", "points") else "loss"
    if found.sd is not None:
        lines.append(("sd ", Number(group, measure, "sd", found.sd, spread)))
    lines.append(_interval(group, measure, found.low, found.high, form) or (_no_interval(found),))
    return Cell(tuple(lines))


def _no_interval(found: Estimate) -> str:
    return "one seed" if found.n == 1 else "no spread"


def difference_cell(group: str, measure: str, found: Difference, form: str = "points") -> Cell:
    """Effect, and its interval below or why there is none."""
    effect = Number(group, measure, "effect", found.effect, form)
    return Cell(((effect,), _interval(group, measure, found.low, found.high, form) or (f"no interval: {found.why}",)))


def _interval(group: str, measure: str, low: float | None, high: float | None, form: str) -> Words:
    if low is None or high is None:
        return ()
    return ("[", Number(group, measure, "low", low, form), ", ", Number(group, measure, "high", high, form), "]")


def in_words(group: str, measure: str, found: Estimate | Difference, form: str, unit: str) -> Words:
    """``76.32 % (95 % interval 75.90 to 76.74)``, or without the interval where there is none."""
    value = found.mean if isinstance(found, Estimate) else found.effect
    statistic = "mean" if isinstance(found, Estimate) else "effect"
    words: list[Word] = [Number(group, measure, statistic, value, form), unit]
    if found.low is None or found.high is None:
        why = _no_interval(found) if isinstance(found, Estimate) else found.why
        return (*words, f" ({why})")
    low, high = (Number(group, measure, name, end, form) for name, end in (("low", found.low), ("high", found.high)))
    return (*words, " (95 % interval ", low, " to ", high, ")")


def count(group: str, measure: str, value: float) -> Number:
    """A whole number."""
    return Number(group, measure, "count", value, "count")


def run_ids(*groups: Group) -> tuple[str, ...]:
    """Ids of the runs in groups, each once."""
    return tuple(dict.fromkeys(run.run_id for group in groups for run in group.runs))
