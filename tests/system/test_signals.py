"""Signals to real processes: a stop request of a run, and the end of all other commands."""

from __future__ import annotations

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

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
PROLOGUE = """
import os, signal, sys, time
from cnn_jobs.errors import InterruptedRunError
from cnn_jobs.system.signals import StopRequest, exit_on_sigterm

def report(*text):
    print(*text, flush=True)

def work(seconds=0.3):
    time.sleep(seconds)  # continues after a signal whose handler returns

def wait_for_request():
    while not stop.requested():
        work(0.02)

"""
INSTALL = "stop = StopRequest()\nstop.install()\n"


class Program:
    """A running program that reports on stdout."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: signal.Signals = signal.SIGTERM, *, after: str = "ready") -> None:
        """Sends a signal after the line ``after``."""
        assert self.line() == after
        self.process.send_signal(number)

    def rest(self) -> tuple[list[str], int]:
        """The remaining lines, and the exit code."""
        output, _ = self.process.communicate(timeout=60)
        return output.splitlines(), self.process.returncode


@contextmanager
def running(body: str, setup: str = INSTALL) -> Iterator[Program]:
    command = [sys.executable, "-c", PROLOGUE + setup + textwrap.dedent(body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


# -- stop requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_unmasked_signal_raises_at_once(number: signal.Signals) -> None:
    body = """
    try:
        report("ready")
        time.sleep(60)
    except InterruptedRunError as error:
        report("caught:", error, stop.requested())
    """
    with running(body) as program:
        program.send(number)
        assert program.rest() == ([f"caught: stopped by {number.name} True"], 0)


@pytest.mark.parametrize("number", SIGNALS)
def test_masked_signal_is_recorded_and_the_work_completes(number: signal.Signals) -> None:
    body = """
    with stop.masked():
        with stop.masked():  # the end of an inner mask does not end the outer one
            pass
        report("ready")
        wait_for_request()
        work()
        report("finished the step")
    report("after the mask")
    try:
        stop.check()
    except InterruptedRunError as error:
        report("caught:", error)
    """
    with running(body) as program:
        program.send(number)
        assert program.rest() == (["finished the step", "after the mask", f"caught: stopped by {number.name}"], 0)


@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_does_not_interrupt_what_the_first_started(second: signal.Signals) -> None:
    body = """
    try:
        report("ready")
        time.sleep(60)
    except InterruptedRunError:
        report("saving")
        work()
        report("saved")
        work()
        report(stop.signal_name)
    """
    with running(body) as program:
        program.send()
        program.send(second, after="saving")
        program.send(second, after="saved")
        assert program.rest() == (["SIGTERM"], 0)


def test_second_signal_after_a_masked_one_is_ignored() -> None:
    body = """
    with stop.masked():
        report("ready")
        wait_for_request()
    report("writing")
    work()
    report("written")
    """
    with running(body) as program:
        program.send()
        program.send(signal.SIGINT, after="writing")
        assert program.rest() == (["written"], 0)


def test_signal_after_a_mask_raises_at_once() -> None:
    body = """
    try:
        with stop.masked():
            raise KeyError
    except KeyError:
        pass
    try:
        report("ready")
        time.sleep(60)
    except InterruptedRunError as error:
        report("caught:", error)
    """
    with running(body) as program:
        program.send()
        assert program.rest() == (["caught: stopped by SIGTERM"], 0)


def test_mask_holds_until_unmask() -> None:
    body = """
    stop.mask()
    with stop.masked():
        pass
    report("ready")
    wait_for_request()
    report("printed the results")
    stop.unmask()
    try:
        stop.check()
    except InterruptedRunError as error:
        report("caught:", error)
    """
    with running(body) as program:
        program.send()
        assert program.rest() == (["printed the results", "caught: stopped by SIGTERM"], 0)


def test_seconds_left_count_from_the_signal() -> None:
    body = """
    before = stop.seconds_left(5.0)
    with stop.masked():
        report("ready")
        wait_for_request()
        left = stop.seconds_left(5.0)
        work()
        report(before, left - stop.seconds_left(5.0) >= 0.3, stop.seconds_left(0.1))
    """
    with running(body) as program:
        program.send()
        assert program.rest() == (["5.0 True 0.5"], 0)


def test_handler_is_installed_before_heavy_imports() -> None:
    with running('report([name for name in ("torch", "numpy", "mlflow", "click") if name in sys.modules])') as program:
        assert program.rest() == (["[]"], 0)


def test_check_raises_only_after_a_signal() -> None:
    stop = StopRequest()
    assert not stop.requested()
    stop.check()
    stop.signal_name = "SIGTERM"
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM") as caught:
        stop.check()
    assert caught.value.exit_code == 1


# -- exit_on_sigterm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_not_caught_as_an_error_and_runs_cleanup(number: signal.Signals) -> None:
    """Also where a second one follows at once."""
    body = """
    exit_on_sigterm()
    try:
        try:
            report("ready")
            time.sleep(60)
        except Exception as error:
            report("swallowed", error)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        report("cleaned up")
    """
    with running(body, setup="") as program:
        program.send(number)
        assert program.rest() == (["cleaned up"], 1)


@pytest.mark.parametrize("handle", ["exit_on_sigterm()", "StopRequest().install()"])
def test_nohup_ignores_a_closed_terminal(handle: str) -> None:
    body = f"""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    {handle}
    os.kill(os.getpid(), signal.SIGHUP)
    report("continues")
    """
    with running(body, setup="") as program:
        assert program.rest() == (["continues"], 0)


def test_process_that_hangs_after_sigterm_is_ended() -> None:
    body = """
    exit_on_sigterm(0.3)
    try:
        report("ready")
        time.sleep(60)
    finally:
        time.sleep(60)
        report("too late")
    """
    with running(body, setup="") as program:
        program.send()
        began = time.monotonic()
        assert program.rest() == ([], 1)
        assert 0.2 < time.monotonic() - began < 20
