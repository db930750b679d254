"""The report as one HTML file that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

import jinja2
from markupsafe import Markup

from cnn_jobs.reporting.document import Bullets, Document, Link, Number, Paragraph, Picture, Table

TEMPLATES = files("cnn_jobs.reporting") / "templates"


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
