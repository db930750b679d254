"""The comparisons that the course report asks for: planned before the runs are seen, corrected for their number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from cnn_jobs.report.groups import Group, Section
from cnn_jobs.report.statistics import Difference, Estimate, difference, estimate, holm, verdict
from cnn_jobs.tracking import names

# The course report's tables are of the last model: its accuracy on the test set is what is tested.
TESTED = names.LAST_TEST_ACCURACY
DESCRIBED = names.BEST_TEST_ACCURACY


@dataclass(frozen=True)
class Plan:
    """A question of the course report: is ``first`` better than ``second``? ``change``: what ``first`` has more;
    ``claim``: what the course report says of it.
    """

    question: str
    first: str
    second: str
    change: str
    claim: str = ""


PLANNED = (
    Plan("3b", "task3-arch1", "task3-arch2", "the first architecture in place of the second"),
    Plan("3c, 3d", "task3d-batchnorm", "task3d-plain", "BatchNorm", "it helped most"),
    Plan("3c", "task3-arch2", "task3d-batchnorm", "dropout", "it helped against overfitting"),
    Plan("3c", "task3c-avgpool", "task3d-batchnorm", "average in place of max pooling", "it did not help"),
    Plan("3e", "task3e", "task3-arch1", "the final architecture in place of the first"),
    Plan("3e", "task3e", "task3-arch2", "the final architecture in place of the second"),
)


@dataclass(frozen=True)
class Compared:
    """Two groups, compared: ``tested`` by ``TESTED``, ``described`` by ``DESCRIBED`` without a verdict.

    ``gap``: what the change does to the gap between training and test accuracy of the last model.
    """

    plan: Plan
    first: Group
    second: Group
    tested: Difference
    described: Difference
    gap: Difference
    corrected: float | None
    verdict: str


def compare(section: Section, more: Sequence[tuple[Group, Group]] = ()) -> list[Compared]:
    """Every planned comparison whose two groups are there, and ``more``; p-values corrected for all together."""
    pairs = []
    for plan in PLANNED:
        one, other = section.find(plan.first), section.find(plan.second)
        if one and other:
            pairs.append((plan, one, other))
    known = {frozenset((one.key, other.key)) for _, one, other in pairs}
    for one, other in more:
        if frozenset((one.key, other.key)) not in known:
            known.add(frozenset((one.key, other.key)))
            pairs.append(
                (Plan("asked for", one.label, other.label, f"{one.label} in place of {other.label}"), one, other)
            )
    tested = [difference(one.values(TESTED), other.values(TESTED)) for _, one, other in pairs]
    known_p = [each.p for each in tested if each.p is not None]
    corrected = iter(holm(known_p))
    results = []
    for (plan, one, other), found in zip(pairs, tested, strict=True):
        p = next(corrected) if found.p is not None else None
        described = difference(one.values(DESCRIBED), other.values(DESCRIBED))
        gap = difference(gaps(one), gaps(other))
        results.append(Compared(plan, one, other, found, described, gap, p, verdict(found, p)))
    return results


def gaps(group: Group) -> dict[int, float]:
    """Training minus test accuracy of the last model, by seed."""
    train, test = group.values(names.LAST_TRAIN_ACCURACY), group.values(names.LAST_TEST_ACCURACY)
    return {seed: train[seed] - test[seed] for seed in train}


@dataclass(frozen=True)
class Overfitting:
    """How a group's training ended.

    ``gap``: training minus test accuracy. ``rise``: validation loss at the end minus its lowest, in nats. ``slope``: of
    the validation loss over the last quarter of the validations, in nats per 1,000 steps, from a straight line by least
    squares for each run; ``rise`` and ``slope`` are ``None`` where no run recorded enough validations.
    """

    group: Group
    gap: Estimate
    rise: Estimate | None
    slope: Estimate | None

    @property
    def at_the_end(self) -> str:
        """What the validation loss does at the end, in words."""
        if self.slope is None:
            return "too few validations to say"
        if self.slope.low is None or self.slope.high is None:
            return "one seed: not tested" if self.slope.n == 1 else "no spread: not tested"
        if self.slope.high < 0:
            return "still falling"
        return "rising" if self.slope.low > 0 else "neither clearly falling nor rising"


FEWEST = 3


def overfitting(group: Group) -> Overfitting:
    """Gap, rise and slope over the seeds of a group."""
    rises, slopes = [], []
    for run in group.runs:
        steps, losses = run.val_loss.steps, run.val_loss.values
        if losses:
            rises.append(losses[-1] - min(losses))
        count = max(FEWEST, -(-len(losses) // 4))
        if len(losses) >= count:
            thousands = [step / 1000 for step in steps[-count:]]
            slopes.append(float(stats.linregress(thousands, losses[-count:]).slope))
    return Overfitting(
        group,
        estimate(list(gaps(group).values())),
        estimate(rises) if rises else None,
        estimate(slopes) if slopes else None,
    )


def lowest_at(group: Group) -> float | None:
    """Mean share of the training, in [0, 1], after which the validation loss was lowest."""
    shares = [
        run.val_loss.steps[run.val_loss.values.index(min(run.val_loss.values))] / run.val_loss.steps[-1]
        for run in group.runs
        if run.val_loss.values
    ]
    return statistics.fmean(shares) if shares else None
