"""Medians, ratios and targets of the raw figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# The targets: share of the ceiling, factors over the other loops by task, factor over the imports.
LEAST_OF_CEILING = 0.95
LEAST_OVER_OTHERS = {"task2": 1.6, "task3e": 2.0}
MOST_OVER_IMPORTS = 2.0


@dataclass(frozen=True)
class Target:
    """A target, the measured figure, and whether it is met."""

    text: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Summary:
    """Number, median, minimum and maximum of some figures."""

    n: int
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Raises ``ValueError`` for no values."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(len(values), median(values), min(values), max(values))


def ratios(figures: Mapping[str, Sequence[float]], name: str, others: Iterable[str]) -> list[float]:
    """In each round, the figure of ``name`` over the highest of ``others``: a disturbance affects the whole round."""
    rounds = zip(figures[name], *(figures[other] for other in others), strict=True)
    return [first / max(rest) for first, *rest in rounds]


def of_ceiling(rates: Mapping[str, Sequence[float]]) -> list[float]:
    """Our loop as a share of its ceiling, by round."""
    return ratios(rates, "ours", ["ceiling"])


def over_others(rates: Mapping[str, Sequence[float]]) -> list[float]:
    """How many times as fast our loop is as the fastest of the usual loop and Lightning in the same round."""
    return ratios(rates, "ours", [name for name in rates if name not in ("ours", "ceiling")])


def targets(results: Mapping[str, Any]) -> list[Target]:
    """The targets of all parts that were measured."""
    found = []
    for task, part in results.get("speed", {}).items():
        rates = part["images_per_second"]
        share = median(of_ceiling(rates))
        text = f"{task}: our loop, of the ceiling, at least {LEAST_OF_CEILING:.0%}"
        found.append(Target(text, f"{share:.1%}", share >= LEAST_OF_CEILING))
        if task in LEAST_OVER_OTHERS:
            least, factor = LEAST_OVER_OTHERS[task], median(over_others(rates))
            text = f"{task}: our loop, over the fastest of the usual loop and Lightning, at least {least:g} times"
            found.append(Target(text, f"{factor:.2f} times", factor >= least))
    if "startup" in results:
        factor = median(ratios(results["startup"], "first_step", ["imports"]))
        text = f"process start to first step, over the imports, at most {MOST_OVER_IMPORTS:g} times"
        found.append(Target(text, f"{factor:.2f} times", factor <= MOST_OVER_IMPORTS))
    return found
