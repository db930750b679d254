"""The report as files: HTML, Markdown, CSV and JSON."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cnn_jobs.report.document import Block, Bullets, Document, Link, Number, Paragraph, Picture, Table, Words

FILE_NAMES = {"html": "report.html", "md": "report.md", "csv": "tables.csv", "json": "report.json"}
FORMATS = tuple(FILE_NAMES)
TEMPLATES = files("cnn_jobs.report") / "templates"
CSV_HEAD = ("data", "table", "group", "measure", "statistic", "value", "unit", "shown", "run_ids")
# A spreadsheet takes text that begins with one of these for a formula.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def render(document: Document, facts: Mapping[str, Any], formats: Sequence[str]) -> dict[str, bytes]:
    """The report in each of the formats, and its pictures, by file name; ``facts``: see ``report_json``."""
    write: dict[str, Callable[[], str]] = {
        "html": lambda: html(document),
        "md": lambda: markdown(document),
        "csv": lambda: tables_csv(document),
        "json": lambda: report_json(document, facts),
    }
    texts = {FILE_NAMES[each]: write[each]().encode() for each in FORMATS if each in formats}
    return texts | {f"plots/{each.name}": each.png for each in document.pictures()}


# -- HTML --------------------------------------------------------------------------------------------------------------


def html(document: Document) -> str:
    """The page, with all text escaped.

    Its policy forbids the browser to load anything, and to run or apply anything but the page's own script and style,
    which it names by their SHA-256.
    """
    style, script = (TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "sort.js"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    for kind in (Number, Link, Table, Picture, Bullets):
        environment.tests[kind.__name__.lower()] = lambda each, kind=kind: isinstance(each, kind)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    template = environment.from_string(TEMPLATES.joinpath("report.html.j2").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # Markup: the two files are the package's own, and browsers do not unescape inside <style> and <script>.
    return template.render(document=document, policy=Markup(policy), style=Markup(style), script=Markup(script))


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """The page, which shows the pictures in the folder ``plots/``."""
    parts = [f"# {_escape(document.title)}", *(_words(each.words) for each in document.lead)]
    for chapter in document.chapters:
        parts.append(f"{'#' * chapter.level} {_escape(chapter.title)}")
        parts += [_block(document, block) for block in chapter.blocks]
    return "\n\n".join(parts) + "\n"


def _block(document: Document, block: Block) -> str:
    if isinstance(block, Table):
        return _table(document, block)
    if isinstance(block, Picture):
        return f"![{_escape(block.alt)}](plots/{block.name})\n\n*{_escape(block.caption)}*"
    if isinstance(block, Bullets):
        return "\n".join(f"- {_paragraph(document, each)}" for each in block.items)
    return _paragraph(document, block)


def _paragraph(document: Document, paragraph: Paragraph) -> str:
    lead = f"**{_escape(paragraph.lead)}** " if paragraph.lead else ""
    runs = f" (runs {document.run_list(paragraph.runs)})" if paragraph.runs else ""
    return f"{lead}{_words(paragraph.words)}{runs}"


def _table(document: Document, table: Table) -> str:
    with_runs = any(row.runs for row in table.rows)
    heads = [_escape(column.title) for column in table.columns] + ["Runs"] * with_runs
    rules = ["---:" if column.right else "---" for column in table.columns] + ["---"] * with_runs
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rules)}|"]
    for row in table.rows:
        cells = [" <br> ".join(_words(line) for line in cell.lines) for cell in row.cells]
        lines.append(f"| {' | '.join(cells + [document.run_list(row.runs)] * with_runs)} |")
    note = f"\n\n{_words(table.note)}" if table.note else ""
    return f"**{_escape(table.caption)}**\n\n" + "\n".join(lines) + note


def _words(words: Words) -> str:
    texts = []
    for word in words:
        if isinstance(word, Number):
            texts.append(word.text.replace("<", "&lt;"))
        elif isinstance(word, Link):
            texts.append(f"[{_escape(word.text)}]({word.url})" if word.url else _escape(word.text))
        else:
            texts.append(_escape(word))
    return "".join(texts)


def _escape(text: str) -> str:
    """Markup in the text is shown, not applied."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# -- CSV and JSON ------------------------------------------------------------------------------------------------------


def tables_csv(document: Document) -> str:
    """One row per number of every table and text: unrounded, with the ids of the runs behind it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for section, table, number, runs in document.numbers():
        texts = [_harmless(each) for each in (section, table, number.group, number.measure, number.statistic)]
        writer.writerow([*texts, repr(number.value), number.unit, _harmless(number.text), " ".join(runs)])
    return stream.getvalue()


def _harmless(text: str) -> str:
    """Text that no spreadsheet evaluates: what looks like a formula gets an apostrophe before it."""
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def report_json(document: Document, facts: Mapping[str, Any]) -> str:
    """``facts``, and the rows of ``tables.csv`` under ``numbers``."""
    numbers = [
        {
            "data": section,
            "table": table,
            "group": number.group,
            "measure": number.measure,
            "statistic": number.statistic,
            "value": number.value,
            "unit": number.unit,
            "shown": number.text,
            "run_ids": list(runs),
        }
        for section, table, number, runs in document.numbers()
    ]
    return json.dumps({**facts, "numbers": numbers}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
