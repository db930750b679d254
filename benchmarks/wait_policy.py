"""The cost of idle OpenMP threads: spinning long (the library's default), a little (as shipped), or not at all.

The policy is read when torch loads the library, so each has its own process, ``python -m benchmarks.wait_policy TASK
THREADS``, which trains on a constant batch on request.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.children import python
from cnn_jobs.system.process import SPIN_COUNT, keep_freed_memory

POLICIES = {
    "shipped": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
STRETCH_S = 0.4
UNTIMED_STEPS = 2


def measure_wait_policy(task: str, threads: int, *, repeats: int, steps: int) -> dict[str, Any]:
    """Images per second of every policy, alone and beside one busy process; interleaved.

    With ``steps`` 0, as many steps per stretch as take about ``STRETCH_S`` seconds alone.
    """
    rates: dict[str, list[float]] = {f"{policy}_{load}": [] for load in ("alone", "beside") for policy in POLICIES}
    with ExitStack() as stack:
        trainers = {name: stack.enter_context(_trainer(task, threads, value)) for name, value in POLICIES.items()}
        batch_size = {name: int(_answer(process)) for name, process in trainers.items()}["shipped"]
        for process in trainers.values():
            _seconds(process, 10)
        steps = steps or max(5, round(STRETCH_S * 10 / _seconds(trainers["shipped"], 10)))
        for number in range(repeats):
            for load in ("alone", "beside"):
                with _competitor() if load == "beside" else ExitStack():
                    for policy, process in trainers.items():
                        rates[f"{policy}_{load}"].append(steps * batch_size / _seconds(process, steps))
            shown = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
            print(f"  round {number + 1} of {repeats}, images/s: {shown}")
    return {"batch_size": batch_size, "steps": steps, "images_per_second": rates}


def _trainer(task: str, threads: int, policy: dict[str, str]) -> Any:
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env.update(policy)
    args = ("-m", "benchmarks.wait_policy", task, str(threads))
    return _closing_stdin(python(*args, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1))


@contextmanager
def _closing_stdin(context: Any) -> Iterator[subprocess.Popen[str]]:
    """Closes the process's stdin at the end, upon which it exits."""
    with context as process:
        yield process
        process.stdin.close()


@contextmanager
def _competitor() -> Iterator[None]:
    with python("-c", "while True: pass", env=dict(os.environ)) as process:
        try:
            yield
        finally:
            process.kill()


def _seconds(trainer: subprocess.Popen[str], steps: int) -> float:
    assert trainer.stdin is not None
    trainer.stdin.write(f"{steps}\n")
    trainer.stdin.flush()
    return float(_answer(trainer))


def _answer(trainer: subprocess.Popen[str]) -> str:
    assert trainer.stdout is not None
    line = trainer.stdout.readline()
    if not line:
        raise RuntimeError(f"the training process ended with exit code {trainer.wait()}; its messages are above")
    return line


def main() -> None:
    """Prints the batch size, then for each line of stdin the seconds of that number of steps."""
    from benchmarks.contenders import Ceiling
    from benchmarks.setting import Setting, random_dataset

    keep_freed_memory()
    setting = Setting.of(sys.argv[1], random_dataset(1000, 100), int(sys.argv[2]))
    ceiling = Ceiling(setting)
    print(setting.recipe.batch_size, flush=True)
    for line in sys.stdin:
        print(ceiling.run(UNTIMED_STEPS, int(line)), flush=True)


if __name__ == "__main__":
    main()
