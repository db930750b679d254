"""The report's content, independent of any format: chapters of text, tables and pictures, and every number with a name.

HTML, Markdown, CSV and JSON are written from the same object, so they cannot contradict each other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

NO_VALUE = "-"
# Form: unit of the value, factor and format of the text. Fractions are shown as percent.
FORMS: Mapping[str, tuple[str, int, str]] = {
    "percent": ("fraction", 100, ".2f"),
    "points": ("fraction", 100, "+.2f"),  # a difference of percentages
    "share": ("fraction", 100, ".0f"),
    "loss": ("nats", 1, ".4f"),
    "change": ("nats", 1, "+.4f"),
    "count": ("", 1, ",.0f"),
    "seconds": ("s", 1, ",.0f"),
    "rate": ("1/s", 1, ",.0f"),
    "p": ("", 1, ".4f"),
}


@dataclass(frozen=True)
class Document:
    """The whole report; ``run_numbers``: the number of each run id in the list of runs."""

    title: str
    lead: Sequence[Paragraph]
    chapters: Sequence[Chapter]
    run_numbers: Mapping[str, int]

    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        return [block for chapter in self.chapters for block in chapter.blocks if isinstance(block, Picture)]

    def numbers(self) -> Iterator[tuple[str, str, Number, Sequence[str]]]:
        """Every number, in order: its data set, the key of its table (or ``text``), itself, the ids of its runs."""
        for chapter in self.chapters:
            for block in chapter.blocks:
                key, parts = "text", list[tuple[Words, Sequence[str]]]()
                if isinstance(block, Table):
                    key = block.key
                    parts = [(line, row.runs) for row in block.rows for cell in row.cells for line in cell.lines]
                    parts.append((block.note, ()))
                elif isinstance(block, Bullets | Paragraph):
                    items = block.items if isinstance(block, Bullets) else [block]
                    parts = [(each.words, each.runs) for each in items]
                for words, runs in parts:
                    yield from ((chapter.section, key, word, runs) for word in words if isinstance(word, Number))

    def run_list(self, run_ids: Sequence[str]) -> str:
        """The numbers of runs: ``1-3, 5`` for 1, 2, 3 and 5."""
        ranges: list[list[int]] = []
        for number in sorted(self.run_numbers[each] for each in run_ids):
            if ranges and number == ranges[-1][1] + 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


@dataclass(frozen=True)
class Chapter:
    """A heading of ``level`` 2 to 4 and the blocks below it; ``section`` names the data set in the CSV file."""

    level: int
    title: str
    anchor: str
    blocks: Sequence[Block]
    section: str = ""


@dataclass(frozen=True)
class Table:
    """``key`` names it in the CSV file; ``note`` is printed below it."""

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: Words = ()


@dataclass(frozen=True)
class Column:
    """``right``: aligned to the right, for numbers."""

    title: str
    right: bool = False


@dataclass(frozen=True)
class Row:
    """Cells under the columns, of which the first names the row; ``runs``: ids of the runs behind its numbers."""

    cells: Sequence[Cell]
    runs: Sequence[str] = ()
    anchor: str = ""

    @classmethod
    def of(cls, *cells: Cell | Word, runs: Sequence[str] = (), anchor: str = "") -> Row:
        """A row in which a single word makes a cell of its own."""
        return cls([each if isinstance(each, Cell) else Cell(((each,),)) for each in cells], runs, anchor)


@dataclass(frozen=True)
class Cell:
    """Lines of words; ``shade``: darkness 0 to 9 of the background, ``None`` for no shade."""

    lines: Sequence[Words]
    shade: int | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG with its file ``name`` in ``plots/``; ``alt`` describes it in words."""

    name: str
    alt: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Paragraph:
    """Words after an optional bold ``lead``; ``runs``: ids of the runs behind its numbers."""

    words: Words
    runs: Sequence[str] = ()
    lead: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[Paragraph]


Block = Table | Picture | Paragraph | Bullets


@dataclass(frozen=True)
class Number:
    """A value of a group of runs: ``measure`` and ``statistic`` name it, ``form`` formats it (see ``FORMS``)."""

    group: str
    measure: str
    statistic: str
    value: float
    form: str

    @property
    def text(self) -> str:
        """As shown to the reader, with a typographic minus sign."""
        if self.form == "p" and self.value < 0.0001:
            return "< 0.0001"
        _, factor, form = FORMS[self.form]
        return format(factor * self.value, form).replace("-", "\N{MINUS SIGN}")

    @property
    def unit(self) -> str:
        """Of the value, not of the text."""
        return FORMS[self.form][0]

    @property
    def name(self) -> str:
        """Unique within a section."""
        return f"{self.group}|{self.measure}|{self.statistic}"


@dataclass(frozen=True)
class Link:
    """Text that links to a page; plain text if ``url`` is ""."""

    text: str
    url: str


Word: TypeAlias = str | Number | Link
Words: TypeAlias = Sequence[Word]


def clean(text: str, longest: int = 80) -> str:
    """One line of at most ``longest`` characters, without control and direction characters.

    Such characters can make a page show other text than it contains, and can control a terminal.
    """
    kept = "".join(
        " " if each.isspace() else each for each in text if each.isspace() or unicodedata.category(each)[0] != "C"
    )
    line = re.sub(" +", " ", kept).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"
