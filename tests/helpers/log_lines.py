"""Log lines in JSON."""

from __future__ import annotations

import json
from typing import Any


def strict_json(text: str) -> dict[str, Any]:
    """One object, as in RFC 8259: without NaN and infinities."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found
