"""Real processes and real signals: each program below says what it does, and is told when to stop."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cnn_jobs.errors import InterruptedRunError
from cnn_jobs.system.signals import StopRequest

SIGNALS = [signal.SIGTERM, signal.SIGINT]
PROLOGUE = """
import time
from cnn_jobs.errors import InterruptedRunError
from cnn_jobs.system.signals import StopRequest

def say(text):
    print(text, flush=True)

def work(seconds=0.3):
    # A sleep goes on after a signal whose handler returns.
    time.sleep(seconds)

stop = StopRequest()
stop.install()
"""


class Program:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rest(self) -> tuple[list[str], int]:
        """The lines that are left, and the exit code."""
        output, _ = self.process.communicate(timeout=60)
        return output.splitlines(), self.process.returncode


@contextmanager
def running(body: str) -> Iterator[Program]:
    script = PROLOGUE + textwrap.dedent(body)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_at_once_where_nothing_is_lost(number: signal.Signals) -> None:
    body = """
    try:
        say("ready")
        time.sleep(60)
        say("slept")
    except InterruptedRunError as error:
        say(f"caught: {error}")
        say(stop.requested())
    """
    with running(body) as program:
        assert program.line() == "ready"
        started = time.monotonic()
        program.process.send_signal(number)
        assert program.rest() == ([f"caught: stopped by {number.name}", "True"], 0)
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_noted_and_the_work_is_finished(number: signal.Signals) -> None:
    body = """
    with stop.masked():
        say("ready")
        while not stop.requested():
            work(0.02)
        work()
        say("finished the step")
    say("left")
    try:
        stop.check()
    except InterruptedRunError as error:
        say(f"caught: {error}")
    """
    with running(body) as program:
        assert program.line() == "ready"
        program.process.send_signal(number)
        assert program.rest() == (["finished the step", "left", f"caught: stopped by {number.name}"], 0)


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_break_what_the_first_began(second: signal.Signals) -> None:
    body = """
    try:
        say("ready")
        time.sleep(60)
    except InterruptedRunError:
        say("saving")
        work(1)
        say("saved")
        work()
        say(stop.signal_name)
    """
    with running(body) as program:
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.line() == "saving"
        program.process.send_signal(second)
        assert program.line() == "saved"
        program.process.send_signal(second)
        assert program.rest() == (["SIGTERM"], 0)


def test_a_second_signal_after_a_deferred_one_raises_nothing_either() -> None:
    body = """
    with stop.masked():
        say("ready")
        while not stop.requested():
            work(0.02)
    say("writing")
    work(1)
    say("written")
    """
    with running(body) as program:
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.line() == "writing"
        program.process.send_signal(signal.SIGINT)
        assert program.rest() == (["written"], 0)


def test_an_inner_deferral_does_not_end_the_outer_one() -> None:
    body = """
    with stop.masked():
        with stop.masked():
            pass
        say("ready")
        while not stop.requested():
            work(0.02)
        say("finished")
    """
    with running(body) as program:
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.rest() == (["finished"], 0)


def test_after_a_deferral_without_a_signal_the_next_one_raises_at_once() -> None:
    body = """
    try:
        with stop.masked():
            raise KeyError
    except KeyError:
        pass
    try:
        say("ready")
        time.sleep(60)
    except InterruptedRunError as error:
        say(f"caught: {error}")
    """
    with running(body) as program:
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.rest() == (["caught: stopped by SIGTERM"], 0)


def test_the_handler_is_in_place_before_anything_heavy_is_imported() -> None:
    body = """
    import sys
    say([name for name in ("torch", "numpy", "mlflow", "click") if name in sys.modules])
    """
    with running(body) as program:
        assert program.rest() == (["[]"], 0)


def test_without_a_signal_nothing_is_asked_for() -> None:
    stop = StopRequest()
    assert not stop.requested()
    stop.check()
    stop.signal_name = "SIGTERM"
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM") as caught:
        stop.check()
    assert caught.value.exit_code == 1


def test_what_is_left_to_say_is_not_broken_and_something_new_is_stopped() -> None:
    body = """
    stop.mask()
    say("ready")
    while not stop.requested():
        work(0.02)
    say("said all")
    stop.unmask()
    try:
        stop.check()
    except InterruptedRunError as error:
        say(f"caught: {error}")
    """
    with running(body) as program:
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.rest() == (["said all", "caught: stopped by SIGTERM"], 0)


def test_the_seconds_after_a_signal_are_counted_once() -> None:
    body = """
    say(stop.seconds_left(5.0))
    with stop.masked():
        say("ready")
        while not stop.requested():
            work(0.02)
        left = stop.seconds_left(5.0)
        work(1)
        say(left - stop.seconds_left(5.0) >= 1)
        say(stop.seconds_left(0.1))
    """
    with running(body) as program:
        assert program.line() == "5.0"
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.rest() == (["True", "0.5"], 0)
