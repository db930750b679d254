"""Text that comes from elsewhere - names, tags, reasons - made fit for a page."""

from __future__ import annotations

import re
import unicodedata

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
