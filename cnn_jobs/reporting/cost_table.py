"""What the runs cost: time, speed, and what was trained twice after a kill."""

from __future__ import annotations

from cnn_jobs.reporting.cells import run_ids
from cnn_jobs.reporting.document import NO_VALUE, Cell, Column, Number, Row, Table
from cnn_jobs.reporting.groups import Group, Section
from cnn_jobs.reporting.words import clean

# Sums over the runs of a group.
SUMS = (
    ("ledger/attempts", "Attempts", "count"),
    ("ledger/steps", "Steps", "count"),
    ("ledger/wall_seconds", "Wall time, s", "seconds"),
    ("ledger/device_seconds", "Device time, s", "seconds"),
)
WASTED, RATE = "ledger/device_seconds_thrown_away", "train/images_per_second"


def cost_table(section: Section) -> Table:
    """A row a group: sums over its runs, useful and thrown-away device seconds, mean speed, machine."""
    rows = []
    for group in section.groups:
        cells = [Cell.of(group.label), Cell.of(Number(group.label, "cost", "runs", len(group.runs), "count"))]
        cells += [_sum(group, metric, form) for metric, _, form in SUMS]
        device, wasted = group.values("ledger/device_seconds"), group.values(WASTED)
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
