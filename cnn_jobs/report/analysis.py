"""The analysis for the course report's questions: planned comparisons, corrected for their number, and overfitting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from cnn_jobs.report.groups import Group, Section
from cnn_jobs.report.statistics import Difference, Estimate, difference, estimate, holm, verdict
from cnn_jobs.tracking import names

# Tested is the test accuracy of the last model, the one in the course report's tables.
TESTED = names.LAST_TEST_ACCURACY
DESCRIBED = names.BEST_TEST_ACCURACY
GAP, RISE, SLOPE = "last/gap", f"{names.VAL_LOSS} rise", f"{names.VAL_LOSS} slope"
FEWEST_VALIDATIONS = 3  # for a slope


@dataclass(frozen=True)
class Plan:
    """A comparison: is ``first`` better than ``second``?

    ``change``: what distinguishes ``first``; ``claim``: the course report's finding about it.
    """

    question: str
    first: str
    second: str
    change: str
    claim: str = ""


# Planned before any run was evaluated.
PLANNED = (
    Plan("3b", "task3-arch1", "task3-arch2", "the first architecture in place of the second"),
    Plan("3c, 3d", "task3d-batchnorm", "task3d-plain", "BatchNorm", "it helped most"),
    Plan("3c", "task3-arch2", "task3d-batchnorm", "dropout", "it helped against overfitting"),
    Plan("3c", "task3c-avgpool", "task3d-batchnorm", "average in place of max pooling", "it did not help"),
    Plan("3e", "task3e", "task3-arch1", "the final architecture in place of the first"),
    Plan("3e", "task3e", "task3-arch2", "the final architecture in place of the second"),
)


@dataclass(frozen=True)
class Comparison:
    """Two groups: ``tested`` is the difference in ``TESTED``, ``corrected`` its p-value after Holm's correction.

    ``described``: the difference in ``DESCRIBED``, without a verdict; ``gap``: in the gap between training and test
    accuracy of the last model.
    """

    plan: Plan
    first: Group
    second: Group
    tested: Difference
    described: Difference
    gap: Difference
    corrected: float | None

    @property
    def label(self) -> str:
        """Names its numbers."""
        return f"{self.first.label} - {self.second.label}"

    @property
    def verdict(self) -> str:
        """See ``statistics.verdict``."""
        return verdict(self.tested, self.corrected)

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Of both groups."""
        return self.first.run_ids + self.second.run_ids


def compare(section: Section, requested: Sequence[tuple[Group, Group]] = ()) -> list[Comparison]:
    """Every planned comparison whose groups are in the section, and the requested ones, corrected together."""
    pairs = []
    for plan in PLANNED:
        one, other = section.find(plan.first), section.find(plan.second)
        if one and other:
            pairs.append((plan, one, other))
    known = {frozenset((one.key, other.key)) for _, one, other in pairs}
    for one, other in requested:
        if frozenset((one.key, other.key)) not in known:
            known.add(frozenset((one.key, other.key)))
            plan = Plan("requested", one.label, other.label, f"{one.label} in place of {other.label}")
            pairs.append((plan, one, other))
    tested = [difference(one.values(TESTED), other.values(TESTED)) for _, one, other in pairs]
    corrected = iter(holm([each.p for each in tested if each.p is not None]))
    return [
        Comparison(
            plan,
            one,
            other,
            found,
            described=difference(one.values(DESCRIBED), other.values(DESCRIBED)),
            gap=difference(_gaps(one), _gaps(other)),
            corrected=None if found.p is None else next(corrected),
        )
        for (plan, one, other), found in zip(pairs, tested, strict=True)
    ]


def _gaps(group: Group) -> dict[int, float]:
    """Training minus test accuracy of the last model, by seed."""
    train, test = group.values(names.LAST_TRAIN_ACCURACY), group.values(TESTED)
    return {seed: train[seed] - test[seed] for seed in train}


@dataclass(frozen=True)
class Overfitting:
    """How the training of a group ended.

    ``gap``: training minus test accuracy. ``rise``: validation loss at the end minus its minimum, in nats. ``slope``:
    of the validation loss over the last quarter of the validations, in nats per 1,000 steps, by least squares for each
    run. ``lowest_at``: mean share of the training, in [0, 1], after which the validation loss was lowest. All but
    ``gap`` are ``None`` if no run recorded enough validations.
    """

    group: Group
    gap: Estimate
    rise: Estimate | None
    slope: Estimate | None
    lowest_at: float | None

    @property
    def at_the_end(self) -> str:
        """What the validation loss does at the end."""
        if self.slope is None:
            return "not tested: too few validations"
        if self.slope.interval is None:
            return f"not tested: {self.slope.why}"
        low, high = self.slope.interval
        if high < 0:
            return "still falling"
        return "rising" if low > 0 else "neither clearly falling nor rising"


def overfitting(group: Group) -> Overfitting:
    """Gap, rise, slope and time of the lowest validation loss, over the seeds of a group."""
    rises, slopes, shares = [], [], []
    for run in group.runs:
        steps, losses = run.val_loss.steps, run.val_loss.values
        if losses:
            rises.append(losses[-1] - min(losses))
            shares.append(steps[losses.index(min(losses))] / steps[-1])
        count = max(FEWEST_VALIDATIONS, -(-len(losses) // 4))
        if len(losses) >= count:
            thousands = [step / 1000 for step in steps[-count:]]
            slopes.append(float(stats.linregress(thousands, losses[-count:]).slope))
    return Overfitting(
        group,
        gap=estimate(_gaps(group).values()),
        rise=estimate(rises) if rises else None,
        slope=estimate(slopes) if slopes else None,
        lowest_at=statistics.fmean(shares) if shares else None,
    )
