"""Where every number comes from: the runs that count, those that do not, versions, what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cnn_jobs.report.comparisons import Compared, Overfitting, lowest_at
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
from cnn_jobs.report.statistics import Difference, Estimate, estimate
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import MODELS, Aside, TrainingRun

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
        p = Number(pair, names.LAST_TEST_ACCURACY, "p", each.tested.p, "p") if each.tested.p is not None else NO_VALUE
        holm = (
            Number(pair, names.LAST_TEST_ACCURACY, "p Holm", each.corrected, "p")
            if each.corrected is not None
            else NO_VALUE
        )
        cells = [
            Cell(((each.plan.question,), (each.plan.change,))),
            Cell(((each.first.label,), ("against ", each.second.label))),
            Cell.of(*how),
            difference_cell(pair, names.LAST_TEST_ACCURACY, each.tested),
            Cell.of(p),
            Cell.of(holm),
            Cell.of(each.verdict),
            difference_cell(pair, names.BEST_TEST_ACCURACY, each.described),
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
            Cell.of(Number(label, names.VAL_LOSS, "lowest at", share, "share") if share is not None else NO_VALUE),
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


# Sums over the runs of a group.
SUMS = (
    (names.ATTEMPTS, "Attempts", "count"),
    (names.STEPS, "Steps", "count"),
    (names.WALL_SECONDS, "Wall time, s", "seconds"),
    (names.DEVICE_SECONDS, "Device time, s", "seconds"),
)
WASTED, RATE = names.WASTED_DEVICE_SECONDS, names.TRAIN_SPEED


def cost_table(section: Section) -> Table:
    """A row a group: sums over its runs, useful and thrown-away device seconds, mean speed, machine."""
    rows = []
    for group in section.groups:
        cells = [Cell.of(group.label), Cell.of(Number(group.label, "cost", "runs", len(group.runs), "count"))]
        cells += [_sum(group, metric, form) for metric, _, form in SUMS]
        device, wasted = group.values(names.DEVICE_SECONDS), group.values(WASTED)
        both = device.keys() & wasted.keys()
        useful = sum(device[seed] - wasted[seed] for seed in both)
        cells.append(Cell.of(Number(group.label, "cost", "useful", useful, "seconds") if both else NO_VALUE))
        cells.append(_sum(group, WASTED, "seconds"))
        rates = group.values(RATE)
        rate = Number(group.label, RATE, "mean", sum(rates.values()) / len(rates), "rate") if rates else NO_VALUE
        cells += [Cell.of(rate), Cell.of(_machines(group))]
        rows.append(Row(cells, run_ids(group)))
    columns = [Column("Task"), Column("Runs", right=True), *(Column(title, right=True) for _, title, _ in SUMS)]
    columns += [Column("Useful, device s", right=True), Column("Thrown away, device s", right=True)]
    columns += [Column("Images/s", right=True), Column("Machine")]
    note = (
        "Sums over the runs of a group, over all their attempts. Thrown away: steps that a killed attempt had done "
        "after its last checkpoint, and that were trained again. Images/s: as last measured in each run, mean over "
        "the runs."
    )
    return Table("cost", "What it cost", columns, rows, (note,))


def _sum(group: Group, metric: str, form: str) -> Cell:
    values = group.values(metric)
    return Cell.of(Number(group.label, metric, "sum", sum(values.values()), form) if values else NO_VALUE)


def _machines(group: Group) -> str:
    found = dict.fromkeys(
        f"{clean(run.tags.get('cnn_jobs.device', '-'))}, {clean(run.tags.get('cnn_jobs.threads', '?'), 8)} thread(s)"
        for run in group.runs
    )
    return "; ".join(found)


SHOWN_ASIDE = 500


def runs_table(sections: Sequence[Section], numbers: Mapping[str, int]) -> Table:
    """Every run that counts, with its number, its page in MLflow and its lineage."""
    rows = [
        Row(
            [
                Cell.of(str(numbers[run.run_id])),
                Cell.of(Link(run.run_id, run.url)),
                Cell.of(clean(run.name)),
                Cell.of(group.label),
                Cell.of(str(run.seed)),
                Cell.of(section.name),
                Cell.of(_time(run)),
                Cell.of(_commit(run)),
                Cell.of(clean(run.tags.get(names.ATTEMPT, "-"), 8)),
                Cell.of(clean(run.tags.get(names.DEVICE, "-"))),
            ],
            anchor=f"run-{numbers[run.run_id]}",
        )
        for section in sections
        for group in section.groups
        for run in group.runs
    ]
    titles = ("No.", "Run", "Name", "Task", "Seed", "Data", "Started (UTC)", "Code", "Attempts", "Device")
    return Table("runs", "Runs that count", [Column(title) for title in titles], rows)


def _time(run: TrainingRun) -> str:
    return datetime.fromtimestamp(run.start_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _commit(run: TrainingRun) -> str:
    commit = clean(run.tags.get(names.GIT_COMMIT, ""), 40)[:12] or "unknown"
    return f"{commit} with changes" if run.tags.get(names.GIT_DIRTY, "").lower() == "true" else commit


def versions_table(sections: Sequence[Section]) -> Table | None:
    """Each set of versions, with the runs that had it."""
    sets: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for section in sections:
        for group in section.groups:
            for run in group.runs:
                if run.versions:
                    sets.setdefault(tuple(sorted(run.versions.items())), []).append(run.run_id)
    if not sets:
        return None
    rows = [
        Row([Cell.of(", ".join(f"{clean(name, 30)} {clean(version, 60)}" for name, version in each if version))], runs)
        for each, runs in sets.items()
    ]
    return Table("versions", "Versions", [Column("Python, platform and packages")], rows)


def aside_table(aside: Sequence[Aside]) -> Table:
    """Runs that do not count, with state and reason."""
    rows = [
        Row([Cell.of(Link(each.run_id, each.url)), Cell.of(each.name), Cell.of(each.state), Cell.of(each.reason)])
        for each in aside[:SHOWN_ASIDE]
    ]
    left = len(aside) - len(rows)
    note = (f"and {left:,} more; report.json has them all",) if left else ()
    columns = [Column(title) for title in ("Run", "Name", "State", "Why it does not count")]
    return Table("set-aside", "Runs that do not count", columns, rows, note)


def lacking_list(sections: Sequence[Section]) -> Bullets | None:
    """What could not be read of the runs that count; ``None`` where all could."""
    found: dict[tuple[str, ...], list[str]] = {}
    for section in sections:
        for group in section.groups:
            for run in group.runs:
                if run.lacking:
                    found.setdefault(run.lacking, []).append(run.run_id)
    if not found:
        return None
    items = [Paragraph((f"{clean('; '.join(lacking), 300)}",), runs) for lacking, runs in found.items()]
    return Bullets(items)
