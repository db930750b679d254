"""The report as Markdown, CSV and JSON."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cnn_jobs.report.document import (
    UNITS,
    Block,
    Bullets,
    Cell,
    Document,
    Link,
    Number,
    Paragraph,
    Picture,
    Row,
    Table,
    Words,
    numbers_short,
)

TEMPLATES = files("cnn_jobs.report") / "templates"


def html(document: Document) -> str:
    """The whole page. Every text in it is escaped; its policy lets the browser load nothing, and run and apply only the
    script and the style that are in it, by their SHA-256."""
    style, script = (TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "sort.js"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.tests.update(
        number=lambda each: isinstance(each, Number),
        link=lambda each: isinstance(each, Link),
        table=lambda each: isinstance(each, Table),
        picture=lambda each: isinstance(each, Picture),
        bullets=lambda each: isinstance(each, Bullets),
        paragraph=lambda each: isinstance(each, Paragraph),
    )
    environment.filters["data_uri"] = _data_uri
    template = environment.from_string(TEMPLATES.joinpath("report.html.j2").read_text(encoding="utf-8"))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    # Markup: the two files are this package's own, and a browser does not unescape them.
    return template.render(document=document, policy=Markup(policy), style=Markup(style), script=Markup(script))


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"


# What the report can be written as, and the name of each file.
FILE_NAMES = {"html": "report.html", "md": "report.md", "csv": "tables.csv", "json": "report.json"}
FORMATS = tuple(FILE_NAMES)
CSV_HEAD = ("data", "table", "group", "measure", "statistic", "value", "unit", "shown", "run_ids")
# A spreadsheet takes a text that begins with one of these for a formula.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def markdown(document: Document) -> str:
    """The whole report; pictures lie in ``plots/`` beside it."""
    parts = [f"# {_escaped(document.title)}", *(_words(each.words) for each in document.lead)]
    for chapter in document.chapters:
        parts.append(f"{'#' * chapter.level} {_escaped(chapter.title)}")
        parts += [_block(document, block) for block in chapter.blocks]
    return "\n\n".join(parts) + "\n"


def _block(document: Document, block: Block) -> str:
    if isinstance(block, Table):
        return _table(document, block)
    if isinstance(block, Picture):
        return f"![{_escaped(block.alt)}](plots/{block.name})\n\n*{_escaped(block.caption)}*"
    if isinstance(block, Bullets):
        return "\n".join(f"- {_lead(each)}{_words(each.words)}{_behind(document, each)}" for each in block.items)
    return f"{_words(block.words)}{_behind(document, block)}"


def _lead(paragraph: Paragraph) -> str:
    return f"**{_escaped(paragraph.lead)}** " if paragraph.lead else ""


def _behind(document: Document, paragraph: Paragraph) -> str:
    runs = [document.run_numbers[run] for run in paragraph.runs]
    return f" (runs {numbers_short(runs)})" if runs else ""


def _table(document: Document, table: Table) -> str:
    with_runs = any(row.runs for row in table.rows)
    heads = [_escaped(column.title) for column in table.columns] + ["Runs"] * with_runs
    rules = ["---:" if column.right else "---" for column in table.columns] + ["---"] * with_runs
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rules)}|"]
    lines += [f"| {' | '.join(_cells(document, row, with_runs))} |" for row in table.rows]
    note = f"\n\n{_words(table.note)}" if table.note else ""
    return f"**{_escaped(table.caption)}**\n\n" + "\n".join(lines) + note


def _cells(document: Document, row: Row, with_runs: bool) -> list[str]:
    cells = [_cell(cell) for cell in row.cells]
    return cells + [numbers_short([document.run_numbers[run] for run in row.runs])] * with_runs


def _cell(cell: Cell) -> str:
    return " <br> ".join(_words(line) for line in cell.lines)


def _words(words: Words) -> str:
    return "".join(_word(word) for word in words)


def _word(word: str | Number | Link) -> str:
    if isinstance(word, Number):
        return word.text.replace("<", "&lt;")
    if isinstance(word, Link):
        return f"[{_escaped(word.text)}]({word.url})" if word.url else _escaped(word.text)
    return _escaped(word)


def _escaped(text: str) -> str:
    """What would be markup is shown as it is."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def tables_csv(document: Document) -> str:
    """A row a number: every number of every table and text, unrounded, with the runs behind it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for section, table, numbers, runs in _numbers(document):
        for number in numbers:
            texts = (section, table, number.group, number.measure, number.statistic)
            named = [harmless(text) for text in texts]
            writer.writerow([*named, repr(number.value), UNITS[number.form], harmless(number.text), " ".join(runs)])
    return stream.getvalue()


def harmless(text: str) -> str:
    """A text that no spreadsheet runs: one that begins like a formula gets an apostrophe before it."""
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def _numbers(document: Document) -> list[tuple[str, str, list[Number], Sequence[str]]]:
    """(section, table, numbers, runs) of every row and paragraph that has numbers."""
    found: list[tuple[str, str, list[Number], Sequence[str]]] = []
    for chapter in document.chapters:
        for block in chapter.blocks:
            if isinstance(block, Table):
                rows = [([n for cell in row.cells for n in cell.numbers], row.runs) for row in block.rows]
                rows.append(([word for word in block.note if isinstance(word, Number)], ()))
                found += [(chapter.section, block.key, numbers, runs) for numbers, runs in rows]
            elif isinstance(block, Bullets | Paragraph):
                items = block.items if isinstance(block, Bullets) else [block]
                found += [
                    (chapter.section, "text", [word for word in each.words if isinstance(word, Number)], each.runs)
                    for each in items
                ]
    return found


def report_json(document: Document, facts: dict[str, Any]) -> str:
    """``facts``, and every number as ``tables.csv`` has it."""
    numbers = [
        {
            "data": section,
            "table": table,
            "group": number.group,
            "measure": number.measure,
            "statistic": number.statistic,
            "value": number.value,
            "unit": UNITS[number.form],
            "shown": number.text,
            "run_ids": list(runs),
        }
        for section, table, numbers, runs in _numbers(document)
        for number in numbers
    ]
    return json.dumps({**facts, "numbers": numbers}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
