"""The course report's tables: final figures, beside the report's own, the comparisons, how training ended."""

from __future__ import annotations

from collections.abc import Sequence

from cnn_jobs.reporting.cells import PART_NAMES, count, difference_cell, estimate_cell, run_ids
from cnn_jobs.reporting.comparisons import Compared, Overfitting, lowest_at
from cnn_jobs.reporting.document import NO_VALUE, Cell, Column, Number, Row, Table
from cnn_jobs.reporting.groups import Group, Section
from cnn_jobs.reporting.rows import MODELS
from cnn_jobs.reporting.statistics import estimate
from cnn_jobs.tasks import TASKS

FIGURES = (
    ("train_loss", "Train loss", "loss"),
    ("train_accuracy", "Train acc., %", "percent"),
    ("val_loss", "Val. loss", "loss"),
    ("val_accuracy", "Val. acc., %", "percent"),
    ("test_loss", "Test loss", "loss"),
    ("test_accuracy", "Test acc., %", "percent"),
)
# What the course report gives, of its last model.
REFERENCES = (
    ("train_loss", "training loss", "loss", "change"),
    ("train_accuracy", "training accuracy, %", "percent", "points"),
    ("val_loss", "validation loss", "loss", "change"),
    ("val_accuracy", "validation accuracy, %", "percent", "points"),
    ("test_accuracy", "test accuracy, %", "percent", "points"),
)


def final_figures(section: Section) -> Table:
    """A row a group and model: mean, standard deviation and interval over the seeds."""
    rows = []
    for group in section.groups:
        for model in MODELS:
            cells = [Cell.of(group.label), Cell.of(model), Cell.of(count(group.label, "seeds", len(group.runs)))]
            for name, _, form in FIGURES:
                metric = f"{model}/{name}"
                cells.append(estimate_cell(group.label, metric, estimate(list(group.values(metric).values())), form))
            rows.append(Row(cells, run_ids(group)))
    columns = [Column("Task"), Column("Model"), Column("n", right=True)]
    columns += [Column(title, right=True) for _, title, _ in FIGURES]
    note = (
        "n: seeds. last: the model at the end, as in the course report's tables; best: the one of the lowest "
        "validation loss. sd: standard deviation between seeds; in brackets the 95 % interval of the mean."
    )
    return Table("final-figures", "Final loss (nats) and accuracy", columns, rows, (note,))


def beside_the_report(section: Section) -> Table | None:
    """Ours minus the course report's figures, of the last model; ``None`` where it gives none of these tasks."""
    rows, notes = [], []
    for group in section.groups:
        reference = TASKS[group.task].reference
        for name, title, form, change in REFERENCES:
            theirs = getattr(reference, name)
            # With another recipe it is another experiment.
            if theirs is None or group.changed:
                continue
            metric = f"last/{name}"
            ours = estimate(list(group.values(metric).values()))
            comparable = not (name.endswith("loss") and reference.note)
            if not comparable:
                notes.append(f"{group.task}: {reference.note} ")
            cells = [
                Cell.of(group.label),
                Cell.of(title),
                estimate_cell(group.label, metric, ours, form),
                Cell.of(Number(group.label, metric, "course report", theirs, form)),
                Cell.of(Number(group.label, metric, "minus course report", ours.mean - theirs, change))
                if comparable
                else Cell.of("not comparable"),
            ]
            rows.append(Row(cells, run_ids(group)))
    if not rows:
        return None
    columns = [Column("Task"), Column("Figure of the last model")]
    columns += [Column(title, right=True) for title in ("Ours", "Course report", "Ours minus report")]
    caption = "Beside the course report; accuracies in percent, their differences in points"
    return Table("course-report", caption, columns, rows, ("".join(notes),) if notes else ())


def comparison_table(compared: Sequence[Compared]) -> Table:
    """A row a comparison: effect with interval, p-value, corrected, in words."""
    rows = []
    for each in compared:
        pair = f"{each.first.label} - {each.second.label}"
        seeds = each.tested.seeds
        how = (count(pair, "pairs", len(seeds)), " pairs") if seeds else ("no pairs: Welch",)
        if each.tested.p is None and not seeds:
            how = ("not tested",)
        p = Number(pair, "last/test_accuracy", "p", each.tested.p, "p") if each.tested.p is not None else NO_VALUE
        holm = (
            Number(pair, "last/test_accuracy", "p Holm", each.corrected, "p")
            if each.corrected is not None
            else NO_VALUE
        )
        cells = [
            Cell(((each.plan.question,), (each.plan.change,))),
            Cell(((each.first.label,), ("against ", each.second.label))),
            Cell.of(*how),
            difference_cell(pair, "last/test_accuracy", each.tested),
            Cell.of(p),
            Cell.of(holm),
            Cell.of(each.verdict),
            difference_cell(pair, "best/test_accuracy", each.described),
            difference_cell(pair, "last/gap", each.gap),
        ]
        rows.append(Row(cells, run_ids(each.first, each.second)))
    columns = [
        *(Column(title) for title in ("Question", "Compared", "How")),
        Column("Test acc., last model: effect, points", right=True),
        Column("p", right=True),
        Column("p, Holm", right=True),
        Column("The first is"),
        Column("Best model: effect, points", right=True),
        Column("Train-test gap: effect, points", right=True),
    ]
    tested = sum(each.corrected is not None for each in compared)
    note = (
        "Effect: first minus second, in points of accuracy, with its 95 % interval; pairs: runs of one seed. Only "
        f"the test accuracy of the last model is tested ({tested} tests, corrected together after Holm); the columns "
        "on the right describe. An interval that leaves out 0 beside 'not separable' is no contradiction: it is not "
        "corrected for the number of comparisons."
    )
    return Table("comparisons", "Comparisons", columns, rows, (note,))


def overfitting_table(found: Sequence[Overfitting]) -> Table:
    """A row a group: gap, and what the validation loss does at the end."""
    rows = []
    for each in found:
        label, share = each.group.label, lowest_at(each.group)
        cells = [
            Cell.of(label),
            estimate_cell(label, "last/gap", each.gap, "points"),
            Cell.of(Number(label, "val/loss", "lowest at", share, "share") if share is not None else NO_VALUE),
            estimate_cell(label, "val/loss rise", each.rise, "change"),
            estimate_cell(label, "val/loss slope", each.slope, "change"),
            Cell.of(each.at_the_end),
        ]
        rows.append(Row(cells, run_ids(each.group)))
    columns = [
        Column("Task"),
        Column("Train minus test acc., points", right=True),
        Column("Val. loss lowest after, % of the steps", right=True),
        Column("Val. loss, end minus lowest", right=True),
        Column("Slope at the end, nats per 1,000 steps", right=True),
        Column("Validation loss at the end"),
    ]
    note = (
        "Of the last model. Slope: straight line by least squares through the last quarter of each run's validations; "
        "'still falling' and 'rising' where the 95 % interval over the seeds leaves out 0."
    )
    return Table("overfitting", "How training ended", columns, rows, (note,))


def per_class(group: Group) -> Table | None:
    """Answers of the best models on the test set, all seeds together; ``None`` without a confusion matrix."""
    having = [run for run in group.runs if run.confusion]
    first = having[0].confusion if having else None
    if first is None:
        return None
    same = [run for run in having if run.confusion and run.confusion.classes == first.classes]
    size = range(len(first.classes))
    sums = [[sum(run.confusion.counts[i][j] for run in same if run.confusion) for j in size] for i in size]
    rows = []
    for true, name in enumerate(first.classes):
        total = sum(sums[true])
        cells = [Cell.of(name)]
        for said in size:
            value = Number(group.label, f"confusion {name}", first.classes[said], sums[true][said], "count")
            share = sums[true][said] / total if total else 0.0
            cells.append(Cell(((value,),), shade=min(9, round(9 * share)) if share >= 0.01 else None))
        right = (
            Number(group.label, f"class {name}", "accuracy", sums[true][true] / total, "percent") if total else NO_VALUE
        )
        rows.append(Row([*cells, Cell.of(right)], [run.run_id for run in same]))
    columns = [
        Column("True class"),
        *(Column(name, right=True) for name in first.classes),
        Column("Right, %", right=True),
    ]
    seeds = f"{len(same)} seeds together" if len(same) > 1 else "one seed"
    note = (
        f"Rows: true class, columns: the answer; counts of test images, {seeds}. {PART_NAMES['test'].capitalize()} set."
    )
    return Table("confusion", f"{group.label}: answers of the best model for each class", columns, rows, (note,))
