"""What was measured, as CSV and in Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from cnn_jobs.interpret.channels import ChannelFacts
from cnn_jobs.interpret.filters import FilterFacts

Rows = list[list[str]]


def filter_rows(facts: Sequence[FilterFacts]) -> Rows:
    """A header, then a row a filter."""
    regions = list(facts[0].responses)
    header = ["filter", "kind", "orientation (degrees)", "coherence", "frequency (cycles/px)", "colour", "colour share"]
    rows = [[*header, "strongest in", *regions]]
    for each in facts:
        orientation = "" if each.orientation_deg is None else f"{each.orientation_deg:.1f}"
        numbers = [f"{each.coherence:.3f}", f"{each.frequency:.4f}", each.colour, f"{each.colour_share:.3f}"]
        responses = [f"{each.responses[name]:.3f}" for name in regions]
        rows.append([str(each.index), each.kind, orientation, *numbers, each.region, *responses])
    return rows


def channel_rows(facts: Sequence[ChannelFacts]) -> Rows:
    """A header, then a row a channel."""
    rows = [["channel", "share zero", "highest", "share above half", "peak (row)", "peak (column)", "strongest in"]]
    for each in facts:
        numbers = (each.sparsity, each.highest, each.area, *each.peak)
        rows.append([str(each.index), *(f"{number:.3f}" for number in numbers), each.region])
    return rows


def as_csv(rows: Rows) -> str:
    """The rows as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def as_markdown(rows: Rows) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])
