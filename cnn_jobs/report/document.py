"""A report as what it says, apart from how it looks: chapters of words, tables and pictures, every number with a name.

HTML, Markdown, CSV and JSON are written from the same object: they cannot say different things.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

LONGEST = 80


def clean(text: str, longest: int = LONGEST) -> str:
    """One line of at most ``longest`` characters, without control and direction characters.

    Such characters can make a page show other words than it holds, or a terminal obey them.
    """
    kept = "".join(
        " " if each.isspace() else each for each in text if each.isspace() or unicodedata.category(each)[0] != "C"
    )
    line = re.sub(" +", " ", kept).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


NO_VALUE = "-"

# How a number is shown. Fractions become percent, differences of fractions points (of percent).
FORMS: Mapping[str, Callable[[float], str]] = {
    "percent": lambda value: f"{100 * value:.2f}",
    "spread": lambda value: f"{100 * value:.2f}",
    "points": lambda value: f"{100 * value:+.2f}",
    "loss": lambda value: f"{value:.4f}",
    "change": lambda value: f"{value:+.4f}",
    "count": lambda value: f"{value:,.0f}",
    "seconds": lambda value: f"{value:,.0f}",
    "rate": lambda value: f"{value:,.0f}",
    "p": lambda value: "< 0.0001" if value < 0.0001 else f"{value:.4f}",
    "share": lambda value: f"{100 * value:.0f}",
}
UNITS: Mapping[str, str] = {
    "percent": "fraction",
    "spread": "fraction",
    "points": "fraction",
    "loss": "nats",
    "change": "nats",
    "count": "",
    "seconds": "s",
    "rate": "1/s",
    "p": "",
    "share": "fraction",
}


@dataclass(frozen=True)
class Number:
    """A value of one group: ``measure`` and ``statistic`` say what it is, ``form`` how it is shown (``FORMS``)."""

    group: str
    measure: str
    statistic: str
    value: float
    form: str

    @property
    def text(self) -> str:
        """As a reader sees it, with a real minus sign."""
        return FORMS[self.form](self.value).replace("-", "\N{MINUS SIGN}")

    @property
    def name(self) -> str:
        """Unique within a section."""
        return f"{self.group}|{self.measure}|{self.statistic}"


@dataclass(frozen=True)
class Link:
    """Words that lead to a page; without an address they are only words."""

    text: str
    url: str


Word: TypeAlias = "str | Number | Link"
Words: TypeAlias = "Sequence[Word]"


@dataclass(frozen=True)
class Cell:
    """Lines of words; ``shade`` 0 to 9 darkens it, ``None`` leaves it."""

    lines: Sequence[Words]
    shade: int | None = None

    @classmethod
    def of(cls, *words: str | Number | Link) -> Cell:
        """One line."""
        return cls((words,))

    @property
    def numbers(self) -> list[Number]:
        """Every number in it."""
        return [each for line in self.lines for each in line if isinstance(each, Number)]


@dataclass(frozen=True)
class Column:
    """Head of a column; ``right`` for numbers."""

    title: str
    right: bool = False


@dataclass(frozen=True)
class Row:
    """Cells under the columns, the first names the row; ``runs``: ids of the runs that its numbers come from."""

    cells: Sequence[Cell]
    runs: Sequence[str] = ()
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """``key`` names it in the CSV file; ``note`` stands below it."""

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: Words = ()


@dataclass(frozen=True)
class Picture:
    """A PNG in ``plots/`` with ``name``; ``alt`` says in words what it shows."""

    name: str
    alt: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Paragraph:
    """One paragraph, ``lead`` in bold before it; ``runs``: ids of the runs that its numbers come from."""

    words: Words
    runs: Sequence[str] = ()
    lead: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[Paragraph]


Block = Table | Picture | Paragraph | Bullets


@dataclass(frozen=True)
class Chapter:
    """A heading of ``level`` 2 to 4 and what stands below it; ``section`` names the data set for the CSV file."""

    level: int
    title: str
    anchor: str
    blocks: Sequence[Block]
    section: str = ""


@dataclass(frozen=True)
class Document:
    """The whole report; ``run_numbers``: the short number of each run id, as the list of runs has it."""

    title: str
    lead: Sequence[Paragraph]
    chapters: Sequence[Chapter]
    run_numbers: Mapping[str, int]

    def tables(self) -> Iterator[tuple[Chapter, Table]]:
        """Every table with its chapter."""
        for chapter in self.chapters:
            for block in chapter.blocks:
                if isinstance(block, Table):
                    yield chapter, block

    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        return [block for chapter in self.chapters for block in chapter.blocks if isinstance(block, Picture)]


def numbers_short(numbers: Sequence[int]) -> str:
    """``1-3, 5`` of 1, 2, 3 and 5."""
    stretches: list[list[int]] = []
    for number in sorted(numbers):
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in stretches)
