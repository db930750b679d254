"""The whole report, put together from the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnn_jobs.networks.table import COLUMNS, LEGEND, cells, describe, summary
from cnn_jobs.report import curves
from cnn_jobs.report.answers import answers
from cnn_jobs.report.comparisons import compare, overfitting
from cnn_jobs.report.document import Block, Cell, Chapter, Column, Document, Paragraph, Picture, Row, Table, clean
from cnn_jobs.report.groups import Group, Section, pair_of
from cnn_jobs.report.tables import (
    aside_table,
    beside_the_report,
    comparison_table,
    cost_table,
    final_figures,
    lacking_list,
    overfitting_table,
    per_class,
    runs_table,
    versions_table,
)
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.run_reader import Aside

METHOD = (
    "Groups: runs of one task with the same recipe but for the seed, on the same data (the tag cnn_jobs.group_hash). "
    "Intervals: Student's t with n - 1 degrees of freedom, 95 % (Student, Biometrika 6, 1908).",
    "Comparisons: differences of runs with the same seed, tested by a paired t-test, where at least two seeds are in "
    "both groups; else Welch's test (Biometrika 34, 1947). The p-values of one data set are corrected together after "
    "Holm (Scandinavian Journal of Statistics 6, 1979): the chance that any 'better' or 'worse' is wrong is at most "
    "5 %. "
    "'Not separable' does not mean 'equal': with few seeds only large differences can be told from chance.",
    "The seed decides the initial weights, the order of images, dropout and augmentation; the validation split is the "
    "same for all. An interval therefore says what another seed would change, not what other images would.",
)


@dataclass(frozen=True)
class Facts:
    """What the report is of: where it was read, when, and which runs were asked for."""

    experiment: str
    where: str
    made: str
    asked: str
    others: int
    version: str


def report(
    facts: Facts, sections: Sequence[Section], aside: Sequence[Aside], compared: Sequence[tuple[str, str]] = ()
) -> Document:
    """All chapters. Raises ``UserError`` for a comparison whose groups are not there."""
    runs = [run for section in sections for group in section.groups for run in group.runs]
    numbers = {run.run_id: number for number, run in enumerate(runs, start=1)}
    asked = [found for first, second in compared for found in pair_of(sections, first, second)]
    chapters: list[Chapter] = []
    for place, section in enumerate(sections, start=1):
        pairs = [(one, other) for where, one, other in asked if where is section]
        chapters += _section(section, f"data-{place}", pairs)
    chapters.append(Chapter(2, "Runs", "runs", _runs(sections, aside, numbers)))
    chapters.append(Chapter(2, "Method", "method", [Paragraph((text,)) for text in METHOD]))
    title = f"Comparison report: {clean(facts.experiment)}"
    return Document(title, _lead(facts, sections, len(runs), len(aside)), chapters, numbers)


def _lead(facts: Facts, sections: Sequence[Section], counted: int, aside: int) -> list[Paragraph]:
    data = "; ".join(f"{section.name} ({_kind(section)})" for section in sections)
    first = f"{counted:,} finished runs count, {aside:,} do not (they are listed, with the reason). Data: {data}."
    left = f" Left out: {facts.others:,} parents of series and documents, which train nothing." if facts.others else ""
    second = (
        f"Read from {clean(facts.where, 200)} on {facts.made} by cnn-jobs {facts.version}; {clean(facts.asked, 300)}."
    )
    return [Paragraph((first + left,)), Paragraph((second,))]


def _kind(section: Section) -> str:
    return "synthetic pictures that the package draws itself" if section.synthetic else "real images"


def _section(section: Section, anchor: str, asked: Sequence[tuple[Group, Group]]) -> list[Chapter]:
    compared = compare(section, asked)
    endings = [overfitting(group) for group in section.groups]

    def chapter(level: int, title: str, name: str, blocks: Sequence[Block]) -> Chapter:
        return Chapter(level, title, f"{anchor}-{name}", blocks, section.name_and_digest)

    kind = f"{section.name}: {_kind(section)}"
    intro = f"Data digest {section.digest}. Nothing here is compared with runs on other data."
    chapters = [
        Chapter(2, kind, anchor, [Paragraph((intro,))], section.name_and_digest),
        chapter(3, "Answers", "answers", [answers(section, compared, endings)]),
        chapter(3, "Final figures", "figures", _figures(section)),
    ]
    if compared:
        chapters.append(chapter(3, "Comparisons", "comparisons", [comparison_table(compared), *_batch_norm(section)]))
    chapters.append(chapter(3, "Overfitting", "overfitting", [overfitting_table(endings), *_overview(section)]))
    chapters.append(chapter(3, "Cost", "cost", [cost_table(section)]))
    for place, group in enumerate(section.groups, start=1):
        chapters.append(chapter(3, group.label, f"group-{place}", _group(group)))
    return chapters


def _figures(section: Section) -> list[Block]:
    dots = curves.accuracy_dots(section.groups, with_reference=not section.synthetic)
    alt = f"Test accuracy of the last model of {len(section.groups)} tasks, each seed a point, with intervals"
    blocks: list[Block] = [final_figures(section)]
    reference = None if section.synthetic else beside_the_report(section)
    if reference:
        blocks.append(reference)
        if section.name != "cifar10":
            text = f"The course report's figures are of the original CIFAR-10 archive, these of '{section.name}'."
            blocks.append(Paragraph((text,)))
    elif section.synthetic:
        blocks.append(
            Paragraph(("The course report's figures are of CIFAR-10: beside drawn pictures they would mislead.",))
        )
    caption = "Test accuracy of the last model: mean, 95 % interval and every seed."
    blocks.append(Picture(f"test-accuracy-{section.digest[:8]}.png", alt, caption, dots))
    return blocks


def _batch_norm(section: Section) -> list[Block]:
    pair = [group for group in map(section.find, ("task3d-batchnorm", "task3d-plain")) if group]
    if len(pair) < 2:
        return []
    alt = "Training and validation loss, and validation accuracy, over the optimiser's steps with BatchNorm and without"
    caption = "3d: with and without BatchNorm. Lines: mean over the seeds; bands: all seeds lie in them."
    picture = curves.together(pair, "With and without BatchNorm")
    return [Picture(f"batchnorm-{section.digest[:8]}.png", alt, caption, picture)]


def _overview(section: Section) -> list[Block]:
    alt = (
        f"Validation loss and accuracy over the optimiser's steps of {', '.join(each.label for each in section.groups)}"
    )
    caption = "Every task on the validation set. Lines: mean over the seeds; bands: all seeds lie in them."
    return [Picture(f"validation-{section.digest[:8]}.png", alt[:400], caption, curves.overview(section.groups))]


def _group(group: Group) -> list[Block]:
    task, name = TASKS[group.task], f"{group.task}-{group.key[:8]}"
    blocks: list[Block] = [Paragraph((f"{task.title}.",)), _network(group)]
    alt = f"Training and validation loss, and validation accuracy, of {group.label} over the optimiser's steps"
    caption = f"{group.label}: mean over {len(group.runs)} seed(s); bands: all seeds lie in them. Training loss: mean "
    caption += "between two validations."
    blocks.append(Picture(f"curves-{name}.png", alt, caption, curves.together([group], curves.plain(group.label))))
    confusion = per_class(group)
    if confusion:
        blocks.append(confusion)
    pictured = next((run for run in group.runs if run.mistakes), None)
    if pictured:
        alt = f"Test images that the best model of {group.label}, seed {pictured.seed}, was surest of and wrong about"
        caption = f"{group.label}, seed {pictured.seed}: its surest mistakes on the test set."
        blocks.append(Picture(f"mistakes-{name}.png", alt, caption, pictured.mistakes))
    return blocks


def _network(group: Group) -> Table:
    layers = describe(TASKS[group.task].network)
    rows = [Row([Cell.of(text) for text in cells(layer)]) for layer in layers]
    columns = [Column(column.title, right=column.right) for column in COLUMNS]
    caption = f"The network of {group.task}, for images of 3x32x32 and 10 classes"
    return Table("network", caption, columns, rows, (f"{summary(layers)}. {LEGEND}",))


def _runs(sections: Sequence[Section], aside: Sequence[Aside], numbers: dict[str, int]) -> list[Block]:
    blocks: list[Block] = [runs_table(sections, numbers)]
    versions = versions_table(sections)
    if versions:
        blocks.append(versions)
    lacking = lacking_list(sections)
    if lacking:
        blocks += [Paragraph(("Not everything could be read of the runs that count:",)), lacking]
    if aside:
        blocks.append(aside_table(aside))
    return blocks
