"""Interleaved measurement: every round runs each contender once, so that a disturbance affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from benchmarks.contenders import Contender

# Before a timed stretch: warms the caches, and uses up the (four) batches that workers prepared in the meantime.
UNTIMED_STEPS = 5
CALIBRATION_STEPS = 10
STRETCH_S = 1.5


def calibrated_steps(contender: Contender, seconds: float = STRETCH_S) -> int:
    """How many steps it does in about ``seconds``, at least 5."""
    contender.run(UNTIMED_STEPS, CALIBRATION_STEPS)  # the first kernels are slow
    step_s = contender.run(UNTIMED_STEPS, CALIBRATION_STEPS) / CALIBRATION_STEPS
    return max(5, round(seconds / step_s))


def measure_rounds(
    contenders: Mapping[str, Contender],
    *,
    repeats: int,
    steps: int | Mapping[str, int],
    batch_size: int,
    report: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Images per second of training steps, by contender, one figure per round. The first contender changes each round.

    ``steps``: timed steps per round, one number for all contenders or one for each.
    """
    counts = dict.fromkeys(contenders, steps) if isinstance(steps, int) else steps
    for contender in contenders.values():
        contender.run(UNTIMED_STEPS, 1)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(counts[name] * batch_size / contenders[name].run(UNTIMED_STEPS, counts[name]))
        shown = ", ".join(f"{name} {rate[-1]:,.0f}" for name, rate in rates.items())
        report(f"  round {number + 1} of {repeats}, images/s: {shown}")
    return rates


@contextmanager
def closing_all(contenders: Mapping[str, Contender]) -> Iterator[None]:
    """Closes every contender at the end, also after an error."""
    with ExitStack() as stack:
        for contender in contenders.values():
            stack.callback(contender.close)
        yield
