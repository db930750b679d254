"""Questions 3b to 3f of the course report, answered in sentences with their figures."""

from __future__ import annotations

from collections.abc import Sequence

from cnn_jobs.report.analysis import DESCRIBED, GAP, PLANNED, RISE, TESTED, Comparison, Overfitting, Plan
from cnn_jobs.report.document import Bullets, Number, Paragraph, Word
from cnn_jobs.report.groups import Section
from cnn_jobs.report.tables import in_words
from cnn_jobs.tasks import TASKS

FINAL_TASK = "task3e"


def answers(section: Section, comparisons: Sequence[Comparison], endings: Sequence[Overfitting]) -> Bullets:
    """One item per question; a question that cannot be answered names the runs that are missing."""
    by_plan = {each.plan: each for each in comparisons}
    items = [_compared(by_plan[plan]) if plan in by_plan else _missing(section, plan) for plan in PLANNED]
    items += [_compared(each) for each in comparisons if each.plan not in PLANNED]
    final = section.find(FINAL_TASK)
    items += [_final(section, each) for each in endings if each.group is final]
    items += [_ending(each) for each in endings]
    return Bullets(items)


def _missing(section: Section, plan: Plan) -> Paragraph:
    missing = " and ".join(name for name in (plan.first, plan.second) if not section.find(name))
    return Paragraph((f"No finished run of {missing} here.",), lead=f"{plan.question}, {plan.change}: not answered.")


def _compared(each: Comparison) -> Paragraph:
    effect = in_words(each.label, TESTED, each.tested, "points", " points of test accuracy")
    words: list[Word] = [f"{each.first.label} against {each.second.label}: ", *effect]
    if each.corrected is not None and each.tested.p is not None:
        words += ["; p = ", Number(each.label, TESTED, "p", each.tested.p, "p")]
        words += [", corrected ", Number(each.label, TESTED, "p Holm", each.corrected, "p")]
    words += [". The gap between training and test accuracy changes by "]
    words += in_words(each.label, GAP, each.gap, "points", " points")
    words += ["; the best model's test accuracy by "]
    words += [*in_words(each.label, DESCRIBED, each.described, "points", " points"), "."]
    if each.plan.claim:
        words.append(f" The course report's finding: {each.plan.claim}.")
    lead = f"{each.plan.question}, {each.plan.change}: {each.verdict} in test accuracy."
    return Paragraph(words, each.run_ids, lead)


def _final(section: Section, ending: Overfitting) -> Paragraph:
    group = ending.group
    test = group.estimate(TESTED)
    words = [*in_words(group.label, TESTED, test, "percent", " % of the test images are classified correctly")]
    theirs = TASKS[group.task].reference.test_accuracy
    if theirs is not None and not section.synthetic and not group.changed:
        reference = Number(group.label, TESTED, "course report", theirs, "percent")
        minus = Number(group.label, TESTED, "minus course report", test.mean - theirs, "points")
        words += ["; the course report has ", reference, " %, a difference of ", minus, " points"]
    return Paragraph((*words, "."), group.run_ids, f"3e, the final network {group.label}:")


def _ending(each: Overfitting) -> Paragraph:
    label = each.group.label
    end = {
        "still falling": "is still falling at the end (no overfitting by that measure)",
        "rising": "rises at the end (overfitting)",
        "neither clearly falling nor rising": "neither clearly falls nor rises at the end",
    }.get(each.at_the_end, f"at the end is {each.at_the_end}")
    gap = in_words(label, GAP, each.gap, "points", " points")
    words: list[Word] = ["Training accuracy minus test accuracy is ", *gap, f"; the validation loss {end}"]
    if each.rise is not None and each.rise.mean > 0:
        words += [", and ends ", *in_words(label, RISE, each.rise, "change", " nats"), " above its minimum"]
    return Paragraph((*words, "."), each.group.run_ids, f"3f, {label}:")
