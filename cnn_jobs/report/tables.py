"""The report's tables, in the order of its chapters, and the cells of estimates and differences."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np

from cnn_jobs.networks import table as network
from cnn_jobs.report.analysis import DESCRIBED, GAP, RISE, SLOPE, TESTED, Comparison, Overfitting
from cnn_jobs.report.document import (
    NO_VALUE,
    Bullets,
    Cell,
    Column,
    Link,
    Number,
    Paragraph,
    Row,
    Table,
    Word,
    Words,
    clean,
)
from cnn_jobs.report.groups import Group, Section
from cnn_jobs.report.statistics import Difference, Estimate
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import Aside, TrainingRun

# Part and figure, their title above a column and in a row.
FIGURES = (
    ("train", "loss", "Train loss", "training loss"),
    ("train", "accuracy", "Train acc., %", "training accuracy, %"),
    ("val", "loss", "Val. loss", "validation loss"),
    ("val", "accuracy", "Val. acc., %", "validation accuracy, %"),
    ("test", "loss", "Test loss", "test loss"),
    ("test", "accuracy", "Test acc., %", "test accuracy, %"),
)
FIGURE_FORMS = {"loss": ("loss", "change"), "accuracy": ("percent", "points")}  # of a value, of a difference
COST_SUMS = (
    (names.ATTEMPTS, "Attempts", "count"),
    (names.STEPS, "Steps", "count"),
    (names.WALL_SECONDS, "Wall time, s", "seconds"),
    (names.DEVICE_SECONDS, "Device time, s", "seconds"),
)
MAX_SET_ASIDE = 500
Key = TypeVar("Key", bound=Hashable)


def _left(*titles: str) -> list[Column]:
    return [Column(title) for title in titles]


def _right(*titles: str) -> list[Column]:
    return [Column(title, right=True) for title in titles]


# -- figures and comparisons -------------------------------------------------------------------------------------------


def final_figures(section: Section) -> Table:
    """One row per group and model: mean, standard deviation and interval over the seeds."""
    rows = []
    for group in section.groups:
        seeds = Number(group.label, "seeds", "count", len(group.runs), "count")
        for model in reversed(names.MODELS):  # first the last model, which is the course report's
            cells = []
            for part, figure, _, _ in FIGURES:
                metric = names.final(model, part, figure)
                cells.append(estimate_cell(group.label, metric, group.estimate(metric), FIGURE_FORMS[figure][0]))
            rows.append(Row.of(group.label, model, seeds, *cells, runs=group.run_ids))
    columns = [*_left("Task", "Model"), *_right("n", *(title for _, _, title, _ in FIGURES))]
    note = (
        "n: seeds. last: the model at the end, as in the course report's tables; best: the model with the lowest "
        "validation loss. sd: standard deviation between seeds; in brackets the 95 % interval of the mean."
    )
    return Table("final-figures", "Final loss (nats) and accuracy", columns, rows, (note,))


def course_report(section: Section) -> Table | None:
    """Our figures of the last model minus the course report's; ``None`` if it has no figures for these tasks."""
    rows, notes = [], []
    for group in section.groups:
        reference = TASKS[group.task].reference
        for part, figure, _, title in FIGURES:
            theirs = getattr(reference, f"{part}_{figure}", None)
            if theirs is None or group.changed:  # with another recipe it is another experiment
                continue
            metric, (form, change) = names.final("last", part, figure), FIGURE_FORMS[figure]
            ours = group.estimate(metric)
            minus: Word = Number(group.label, metric, "minus course report", ours.mean - theirs, change)
            if figure == "loss" and reference.note:
                minus = "not comparable"
                notes.append(f"{group.task}: {reference.note} ")
            cells = (
                estimate_cell(group.label, metric, ours, form),
                Number(group.label, metric, "course report", theirs, form),
                minus,
            )
            rows.append(Row.of(group.label, title, *cells, runs=group.run_ids))
    if not rows:
        return None
    columns = _left("Task", "Figure of the last model") + _right("Ours", "Course report", "Ours minus report")
    caption = "Compared with the course report; accuracies in percent, their differences in points"
    return Table("course-report", caption, columns, rows, ("".join(notes),) if notes else ())


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per comparison: effect with interval, p-value, corrected p-value, verdict."""
    rows = []
    for each in comparisons:
        seeds, p = each.tested.seeds, each.tested.p
        how: Words = ("not tested" if p is None else "no pairs: Welch",)
        if seeds:
            how = (Number(each.label, "pairs", "count", len(seeds), "count"), " pairs")
        rows.append(
            Row.of(
                Cell(((each.plan.question,), (each.plan.change,))),
                Cell(((each.first.label,), ("against ", each.second.label))),
                Cell((how,)),
                difference_cell(each.label, TESTED, each.tested),
                NO_VALUE if p is None else Number(each.label, TESTED, "p", p, "p"),
                NO_VALUE if each.corrected is None else Number(each.label, TESTED, "p Holm", each.corrected, "p"),
                each.verdict,
                difference_cell(each.label, DESCRIBED, each.described),
                difference_cell(each.label, GAP, each.gap),
                runs=each.run_ids,
            )
        )
    columns = [
        *_left("Question", "Compared", "How"),
        *_right("Test acc., last model: effect, points", "p", "p, Holm"),
        *_left("The first is"),
        *_right("Best model: effect, points", "Train-test gap: effect, points"),
    ]
    tested = sum(each.corrected is not None for each in comparisons)
    note = (
        "Effect: first minus second, in points of accuracy, with its 95 % interval; pairs: runs with the same seed. "
        f"Only the test accuracy of the last model is tested ({tested} tests, corrected together after Holm); the "
        "columns on the right describe. An interval without 0 beside 'not separable' is no contradiction: intervals "
        "are not corrected for the number of comparisons."
    )
    return Table("comparisons", "Comparisons", columns, rows, (note,))


def overfitting_table(found: Sequence[Overfitting]) -> Table:
    """One row per group: the gap, and what the validation loss does at the end."""
    rows = []
    for each in found:
        label, share = each.group.label, each.lowest_at
        rows.append(
            Row.of(
                label,
                estimate_cell(label, GAP, each.gap, "points"),
                NO_VALUE if share is None else Number(label, names.VAL_LOSS, "lowest at", share, "share"),
                estimate_cell(label, RISE, each.rise, "change"),
                estimate_cell(label, SLOPE, each.slope, "change"),
                each.at_the_end,
                runs=each.group.run_ids,
            )
        )
    columns = [
        *_left("Task"),
        *_right("Train minus test acc., points", "Val. loss lowest after, % of the steps"),
        *_right("Val. loss, end minus lowest", "Slope at the end, nats per 1,000 steps"),
        *_left("Validation loss at the end"),
    ]
    note = (
        "Of the last model. Slope: straight line by least squares through the last quarter of each run's validations; "
        "'still falling' and 'rising' where the 95 % interval over the seeds excludes 0."
    )
    return Table("overfitting", "How training ended", columns, rows, (note,))


# -- one group ---------------------------------------------------------------------------------------------------------


def network_table(group: Group) -> Table:
    """The network's layers."""
    layers = network.describe(TASKS[group.task].network)
    rows = [Row.of(*network.cells(layer)) for layer in layers]
    columns = [Column(column.title, right=column.right) for column in network.COLUMNS]
    caption = f"The network of {group.task}, for images of 3x32x32 and 10 classes"
    return Table("network", caption, columns, rows, (f"{network.summary(layers)}. {network.LEGEND}",))


def confusion_table(group: Group) -> Table | None:
    """Predictions of the best models on the test set, summed over the seeds; ``None`` without a confusion matrix."""
    found = [(run.run_id, run.confusion) for run in group.runs if run.confusion]
    if not found:
        return None
    classes = found[0][1].classes
    same = [(run_id, matrix.counts) for run_id, matrix in found if matrix.classes == classes]
    sums = np.sum([counts for _, counts in same], axis=0).tolist()
    rows = []
    for true, (name, counts) in enumerate(zip(classes, sums, strict=True)):
        total = sum(counts)
        cells: list[Cell | Word] = []
        for predicted, count in zip(classes, counts, strict=True):
            share = count / total if total else 0.0
            number = Number(group.label, f"confusion {name}", predicted, count, "count")
            cells.append(Cell(((number,),), shade=min(9, round(9 * share)) if share >= 0.01 else None))
        right = Number(group.label, f"class {name}", "accuracy", counts[true] / total, "percent") if total else NO_VALUE
        rows.append(Row.of(name, *cells, right, runs=[run_id for run_id, _ in same]))
    columns = _left("True class") + _right(*classes, "Right, %")
    seeds = f"{len(same)} seeds together" if len(same) > 1 else "one seed"
    note = f"Rows: true class, columns: prediction; counts of test images, {seeds}. Test set."
    return Table("confusion", f"{group.label}: predictions of the best model for each class", columns, rows, (note,))


def cost_table(section: Section) -> Table:
    """One row per group: sums over its runs, useful and wasted device seconds, mean speed, machines."""
    rows = []
    for group in section.groups:
        device, wasted = group.values(names.DEVICE_SECONDS), group.values(names.WASTED_DEVICE_SECONDS)
        both = device.keys() & wasted.keys()
        useful = sum(device[seed] - wasted[seed] for seed in both)
        rates = group.values(names.TRAIN_SPEED).values()
        machines = dict.fromkeys(
            f"{clean(run.tags.get(names.DEVICE, '-'))}, {clean(run.tags.get(names.THREADS, '?'), 8)} thread(s)"
            for run in group.runs
        )
        cells = (
            Number(group.label, "cost", "runs", len(group.runs), "count"),
            *(_sum(group, metric, form) for metric, _, form in COST_SUMS),
            Number(group.label, "cost", "useful", useful, "seconds") if both else NO_VALUE,
            _sum(group, names.WASTED_DEVICE_SECONDS, "seconds"),
            Number(group.label, names.TRAIN_SPEED, "mean", sum(rates) / len(rates), "rate") if rates else NO_VALUE,
        )
        rows.append(Row.of(group.label, *cells, "; ".join(machines), runs=group.run_ids))
    sums = [title for _, title, _ in COST_SUMS]
    columns = (
        _left("Task") + _right("Runs", *sums, "Useful, device s", "Wasted, device s", "Images/s") + _left("Machine")
    )
    note = (
        "Sums over the runs of a group and all their attempts. Wasted: steps of a killed attempt after its last "
        "checkpoint, which were trained again. Images/s: the last measurement of each run, mean over the runs."
    )
    return Table("cost", "Cost of training", columns, rows, (note,))


def _sum(group: Group, metric: str, form: str) -> Word:
    values = group.values(metric).values()
    return Number(group.label, metric, "sum", sum(values), form) if values else NO_VALUE


# -- runs --------------------------------------------------------------------------------------------------------------


def runs_table(sections: Sequence[Section], numbers: Mapping[str, int]) -> Table:
    """Every run that counts, with its number, its MLflow page and its lineage."""
    rows = [
        Row.of(
            str(numbers[run.run_id]),
            Link(run.run_id, run.url),
            clean(run.name),
            group.label,
            str(run.seed),
            section.name,
            datetime.fromtimestamp(run.start_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
            _commit(run),
            clean(run.tags.get(names.ATTEMPT, "-"), 8),
            clean(run.tags.get(names.DEVICE, "-")),
            anchor=f"run-{numbers[run.run_id]}",
        )
        for section in sections
        for group in section.groups
        for run in group.runs
    ]
    columns = _left("No.", "Run", "Name", "Task", "Seed", "Data", "Started (UTC)", "Code", "Attempts", "Device")
    return Table("runs", "Runs that count", columns, rows)


def _commit(run: TrainingRun) -> str:
    commit = clean(run.tags.get(names.GIT_COMMIT, ""), 40)[:12] or "unknown"
    return f"{commit} with changes" if run.tags.get(names.GIT_DIRTY, "").lower() == "true" else commit


def versions_table(sections: Sequence[Section]) -> Table | None:
    """Each set of versions, with its runs; ``None`` if no run recorded any."""
    by_versions = _run_ids_by(sections, lambda run: tuple(sorted(run.versions.items())))
    rows = [
        Row.of(", ".join(f"{clean(name, 30)} {clean(version, 60)}" for name, version in each if version), runs=runs)
        for each, runs in by_versions.items()
    ]
    return Table("versions", "Versions", _left("Python, platform and packages"), rows) if rows else None


def lacking_list(sections: Sequence[Section]) -> Bullets | None:
    """What could not be read of the runs that count; ``None`` if everything could."""
    by_lack = _run_ids_by(sections, lambda run: run.lacking)
    items = [Paragraph((clean("; ".join(lacking), 300),), runs) for lacking, runs in by_lack.items()]
    return Bullets(items) if items else None


def _run_ids_by(sections: Sequence[Section], key: Callable[[TrainingRun], Key]) -> dict[Key, list[str]]:
    """Ids of the runs with the same key; runs with an empty key are left out."""
    found: dict[Key, list[str]] = {}
    for run in (run for section in sections for run in section.runs if key(run)):
        found.setdefault(key(run), []).append(run.run_id)
    return found


def aside_table(aside: Sequence[Aside]) -> Table:
    """Runs that do not count, with state and reason."""
    rows = [Row.of(Link(each.run_id, each.url), each.name, each.state, each.reason) for each in aside[:MAX_SET_ASIDE]]
    more = len(aside) - len(rows)
    note = (f"and {more:,} more; report.json has them all",) if more else ()
    columns = _left("Run", "Name", "State", "Why it does not count")
    return Table("set-aside", "Runs that do not count", columns, rows, note)


# -- cells -------------------------------------------------------------------------------------------------------------


def estimate_cell(group: str, measure: str, found: Estimate | None, form: str) -> Cell:
    """Mean, standard deviation and interval, one line each."""
    if found is None:
        return Cell(((NO_VALUE,),))
    lines: list[Words] = [(Number(group, measure, "mean", found.mean, form),)]
    if found.sd is not None:
        sd = Number(group, measure, "sd", found.sd, "percent" if form in ("percent", "points") else "loss")
        lines.append(("sd ", sd))
    return Cell((*lines, _bracketed(_ends(group, measure, found, form)) or (found.why,)))


def difference_cell(group: str, measure: str, found: Difference) -> Cell:
    """Effect in points, and below it the interval or why there is none."""
    effect = Number(group, measure, "effect", found.effect, "points")
    return Cell(((effect,), _bracketed(_ends(group, measure, found, "points")) or (f"no interval: {found.why}",)))


def in_words(group: str, measure: str, found: Estimate | Difference, form: str, unit: str) -> Words:
    """``76.32 % (95 % interval 75.90 to 76.74)``, or why there is no interval."""
    statistic, value = ("mean", found.mean) if isinstance(found, Estimate) else ("effect", found.effect)
    number, ends = Number(group, measure, statistic, value, form), _ends(group, measure, found, form)
    return (number, unit, *((" (95 % interval ", ends[0], " to ", ends[1], ")") if ends else (f" ({found.why})",)))


def _bracketed(ends: tuple[Number, Number] | None) -> Words:
    return ("[", ends[0], ", ", ends[1], "]") if ends else ()


def _ends(group: str, measure: str, found: Estimate | Difference, form: str) -> tuple[Number, Number] | None:
    if not found.interval:
        return None
    low, high = found.interval
    return Number(group, measure, "low", low, form), Number(group, measure, "high", high, form)
