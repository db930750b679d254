"""Questions 3b to 3f of the course report, answered in words that the figures carry."""

from __future__ import annotations

from collections.abc import Sequence

from cnn_jobs.report.comparisons import PLANNED, Compared, Overfitting, Plan
from cnn_jobs.report.document import Bullets, Number, Paragraph, Word, Words, listed
from cnn_jobs.report.groups import Section
from cnn_jobs.report.statistics import estimate
from cnn_jobs.report.tables import in_words, run_ids
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names

FINAL = "task3e"


def answers(section: Section, compared: Sequence[Compared], found: Sequence[Overfitting]) -> Bullets:
    """An item for each question; one that cannot be answered says which runs it lacks."""
    by_plan = {each.plan: each for each in compared}
    items = []
    for plan in PLANNED:
        each = by_plan.get(plan)
        items.append(_compared(each) if each else _lacking(section, plan))
    items += [_compared(each) for each in compared if each.plan not in PLANNED]
    final = section.find(FINAL)
    if final:
        items.append(_final(section, next(each for each in found if each.group is final)))
    items += [_ending(each) for each in found]
    return Bullets(items)


def _lacking(section: Section, plan: Plan) -> Paragraph:
    missing = [name for name in (plan.first, plan.second) if not section.find(name)]
    return Paragraph(
        (f"No finished run of {listed(missing)} here.",), (), f"{plan.question}, {plan.change}: not answered."
    )


def _compared(each: Compared) -> Paragraph:
    pair = f"{each.first.label} - {each.second.label}"
    effect = in_words(pair, names.LAST_TEST_ACCURACY, each.tested, "points", " points of test accuracy")
    words: list[Word] = [f"{each.first.label} against {each.second.label}: ", *effect]
    if each.corrected is not None and each.tested.p is not None:
        words += ["; p = ", Number(pair, names.LAST_TEST_ACCURACY, "p", each.tested.p, "p")]
        words += [", corrected ", Number(pair, names.LAST_TEST_ACCURACY, "p Holm", each.corrected, "p")]
    words += [". The gap between training and test accuracy changes by "]
    words += in_words(pair, "last/gap", each.gap, "points", " points")
    words += ["; the best model's test accuracy by "]
    words += [*in_words(pair, names.BEST_TEST_ACCURACY, each.described, "points", " points"), "."]
    if each.plan.claim:
        words.append(f" The course report says: {each.plan.claim}.")
    lead = f"{each.plan.question}, {each.plan.change}: {each.verdict} in test accuracy."
    return Paragraph(tuple(words), run_ids(each.first, each.second), lead)


def _final(section: Section, ending: Overfitting) -> Paragraph:
    group = ending.group
    test = estimate(list(group.values(names.LAST_TEST_ACCURACY).values()))
    words: list[Word] = [
        *in_words(group.label, names.LAST_TEST_ACCURACY, test, "percent", " % of the test images are right")
    ]
    theirs = TASKS[group.task].reference.test_accuracy
    if theirs is not None and not section.synthetic and not group.changed:
        reference = Number(group.label, names.LAST_TEST_ACCURACY, "course report", theirs, "percent")
        minus = Number(group.label, names.LAST_TEST_ACCURACY, "minus course report", test.mean - theirs, "points")
        words += ["; the course report has ", reference, " %, a difference of ", minus, " points"]
    return Paragraph((*words, "."), run_ids(group), f"3e, the final network {group.label}:")


def _ending(each: Overfitting) -> Paragraph:
    label = each.group.label
    gap: Words = in_words(label, "last/gap", each.gap, "points", " points")
    end = {
        "still falling": "its validation loss is still falling at the end: it has not begun to overfit by that measure",
        "rising": "its validation loss rises at the end: it overfits",
        "neither clearly falling nor rising": "its validation loss neither clearly falls nor rises at the end",
    }.get(each.at_the_end, f"what its validation loss does at the end: {each.at_the_end}")
    words: list[Word] = ["Training accuracy minus test accuracy is ", *gap, f"; {end}"]
    if each.rise is not None and each.rise.mean > 0:
        words += [", and ends ", *in_words(label, "val/loss rise", each.rise, "change", " nats"), " above its lowest"]
    return Paragraph((*words, "."), run_ids(each.group), f"3f, {label}:")
