"""When a training has stopped to improve."""

from __future__ import annotations

from collections.abc import Sequence


def should_stop_early(validation_losses: Sequence[float], count: int) -> bool:
    """Whether the oldest of the last ``count`` validation losses is the smallest of them; 0 = never.

    The rule of the course's hand-out. With fewer than ``count`` losses the answer is no.
    """
    if not count or len(validation_losses) < count:
        return False
    recent = validation_losses[-count:]
    return recent[0] == min(recent)
