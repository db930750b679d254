"""Waits for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true result of ``condition``. Raises ``AssertionError`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"the condition was not true within {seconds:.0f} s"
        time.sleep(0.02)
    return result
