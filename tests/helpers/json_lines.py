"""Lines of JSON."""

from __future__ import annotations

import json
from typing import Any


def strict(text: str) -> dict[str, Any]:
    """The object in a line of JSON as RFC 8259 defines it: no NaN."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found
