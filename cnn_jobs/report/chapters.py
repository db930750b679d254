"""The report's chapters: answers, tables and plots for each data set, then the runs and the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnn_jobs.report import plots, tables
from cnn_jobs.report.analysis import (
    DESCRIBED,
    GAP,
    PLANNED,
    RISE,
    TESTED,
    Comparison,
    Overfitting,
    Plan,
    compare,
    overfitting,
)
from cnn_jobs.report.document import Block, Bullets, Chapter, Document, Number, Paragraph, Picture, Word, clean
from cnn_jobs.report.groups import Group, Section, find_pairs
from cnn_jobs.report.tables import in_words
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import Aside

FINAL_TASK = "task3e"
METHOD = (
    f"Groups: runs of one task with the same recipe except for the seed, on the same data (tag {names.GROUP_HASH}). "
    "Intervals: Student's t with n - 1 degrees of freedom, 95 % (Student, Biometrika 6, 1908).",
    "Comparisons: differences between runs with the same seed, tested by a paired t-test, if at least two seeds are in "
    "both groups; else Welch's test (Biometrika 34, 1947). The p-values of one data set are corrected together after "
    "Holm (Scandinavian Journal of Statistics 6, 1979): the probability that any 'better' or 'worse' is wrong is at "
    "most 5 %. 'Not separable' does not mean 'equal': with few seeds only large differences can be distinguished from "
    "chance.",
    "The seed decides the initial weights, the order of images, dropout and augmentation; the validation split is the "
    "same for all. An interval therefore shows what another seed would change, not what other images would change.",
)


@dataclass(frozen=True)
class Facts:
    """Where and when the report was made; ``asked``: the selection of runs; ``others``: runs that train nothing."""

    experiment: str
    where: str
    made: str
    asked: str
    others: int
    version: str


def build_document(
    facts: Facts, sections: Sequence[Section], aside: Sequence[Aside], compared: Sequence[tuple[str, str]] = ()
) -> Document:
    """All chapters. Raises ``UserError`` if a group of ``compared`` does not exist."""
    runs = [run for section in sections for run in section.runs]
    run_numbers = {run.run_id: number for number, run in enumerate(runs, start=1)}
    requested = [found for first, second in compared for found in find_pairs(sections, first, second)]
    chapters: list[Chapter] = []
    for place, section in enumerate(sections, start=1):
        pairs = [(one, other) for where, one, other in requested if where is section]
        chapters += _section(section, f"data-{place}", pairs)
    chapters.append(Chapter(2, "Runs", "runs", _runs(sections, aside, run_numbers)))
    chapters.append(Chapter(2, "Method", "method", [Paragraph((text,)) for text in METHOD]))
    title = f"Comparison report: {clean(facts.experiment)}"
    return Document(title, _lead(facts, sections, len(runs), len(aside)), chapters, run_numbers)


def _lead(facts: Facts, sections: Sequence[Section], counted: int, aside: int) -> list[Paragraph]:
    data = "; ".join(f"{section.name} ({_kind(section)})" for section in sections)
    left = f" Left out: {facts.others:,} parents of series and documents, which train nothing." if facts.others else ""
    made = (
        f"Read from {clean(facts.where, 200)} on {facts.made} by cnn-jobs {facts.version}; {clean(facts.asked, 300)}."
    )
    return [
        Paragraph(
            (f"{counted:,} finished runs count, {aside:,} do not (listed with the reason). Data: {data}.{left}",)
        ),
        Paragraph((made,)),
    ]


def _kind(section: Section) -> str:
    return "synthetic pictures, drawn by this package" if section.synthetic else "real images"


def _section(section: Section, anchor: str, requested: Sequence[tuple[Group, Group]]) -> list[Chapter]:
    comparisons = compare(section, requested)
    endings = [overfitting(group) for group in section.groups]

    def chapter(title: str, name: str, *blocks: Block) -> Chapter:
        return Chapter(3, title, f"{anchor}-{name}", blocks, section.name_and_digest)

    intro = f"Data digest {section.digest}. Nothing here is compared with runs on other data."
    chapters = [
        Chapter(2, f"{section.name}: {_kind(section)}", anchor, [Paragraph((intro,))], section.name_and_digest),
        chapter("Answers", "answers", answers(section, comparisons, endings)),
        chapter("Final figures", "figures", *_figures(section)),
    ]
    if comparisons:
        table = tables.comparison_table(comparisons)
        chapters.append(chapter("Comparisons", "comparisons", table, *_batch_norm(section)))
    chapters += [
        chapter("Overfitting", "overfitting", tables.overfitting_table(endings), _overview(section)),
        chapter("Cost", "cost", tables.cost_table(section)),
    ]
    groups = enumerate(section.groups, start=1)
    return chapters + [chapter(group.label, f"group-{place}", *_group(group)) for place, group in groups]


def _figures(section: Section) -> list[Block]:
    blocks: list[Block] = [tables.final_figures(section)]
    reference = None if section.synthetic else tables.course_report(section)
    if reference:
        blocks.append(reference)
        if section.name != "cifar10":
            text = f"The course report's figures are for the original CIFAR-10 archive, these for '{section.name}'."
            blocks.append(Paragraph((text,)))
    elif section.synthetic:
        text = "The course report's figures are for CIFAR-10 and would be misleading beside synthetic pictures."
        blocks.append(Paragraph((text,)))
    alt = f"Test accuracy of the last model of {len(section.groups)} tasks, each seed a point, with intervals"
    caption = "Test accuracy of the last model: mean, 95 % interval and every seed."
    dots = plots.accuracy_dots(section.groups, with_reference=not section.synthetic)
    return [*blocks, Picture(f"test-accuracy-{section.digest[:8]}.png", alt, caption, dots)]


def _batch_norm(section: Section) -> list[Block]:
    pair = [group for group in map(section.find, ("task3d-batchnorm", "task3d-plain")) if group]
    if len(pair) < 2:
        return []
    alt = "Training and validation loss, and validation accuracy, over the optimiser's steps with BatchNorm and without"
    caption = "3d: with and without BatchNorm. Lines: mean over the seeds; bands: range of all seeds."
    picture = plots.together(pair, "With and without BatchNorm")
    return [Picture(f"batchnorm-{section.digest[:8]}.png", alt, caption, picture)]


def _overview(section: Section) -> Picture:
    labels = ", ".join(each.label for each in section.groups)
    alt = f"Validation loss and accuracy over the optimiser's steps of {labels}"
    caption = "Every task on the validation set. Lines: mean over the seeds; bands: range of all seeds."
    return Picture(f"validation-{section.digest[:8]}.png", alt[:400], caption, plots.overview(section.groups))


def _group(group: Group) -> list[Block]:
    task, name = TASKS[group.task], f"{group.task}-{group.key[:8]}"
    alt = f"Training and validation loss, and validation accuracy, of {group.label} over the optimiser's steps"
    caption = (
        f"{group.label}: mean over {len(group.runs)} seed(s); bands: range of all seeds. Training loss: mean between "
        "two validations."
    )
    blocks: list[Block] = [
        Paragraph((f"{task.title}.",)),
        tables.network_table(group),
        Picture(f"curves-{name}.png", alt, caption, plots.together([group], plots.plain(group.label))),
    ]
    confusion = tables.confusion_table(group)
    if confusion:
        blocks.append(confusion)
    pictured = next((run for run in group.runs if run.mistakes), None)
    if pictured:
        run = f"{group.label}, seed {pictured.seed}"
        alt = f"Test images that the best model of {run}, misclassified with the highest confidence"
        caption = f"{run}: its most confident mistakes on the test set."
        blocks.append(Picture(f"mistakes-{name}.png", alt, caption, pictured.mistakes))
    return blocks


def _runs(sections: Sequence[Section], aside: Sequence[Aside], run_numbers: dict[str, int]) -> list[Block]:
    blocks: list[Block] = [tables.runs_table(sections, run_numbers)]
    versions, lacking = tables.versions_table(sections), tables.lacking_list(sections)
    if versions:
        blocks.append(versions)
    if lacking:
        blocks += [Paragraph(("Some data of the runs that count could not be read:",)), lacking]
    if aside:
        blocks.append(tables.aside_table(aside))
    return blocks


# -- questions 3b to 3f of the course report ---------------------------------------------------------------------------


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
