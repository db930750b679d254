from __future__ import annotations

import threading
import time

import pytest

from cnn_jobs.doctor.examine import run
from cnn_jobs.doctor.finding import Finding, NoAnswerError, Shared, ok, warning
from cnn_jobs.errors import DataError


def test_checks_run_side_by_side_and_keep_their_order() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def wait() -> Finding:
        meeting.wait()  # each needs the other one to be under way
        return ok("met")

    found = run([("a", wait), ("b", wait), ("c", lambda: warning("w", "do"))], 10)
    assert [(each.check, each.status) for each in found] == [("a", "ok"), ("b", "ok"), ("c", "warning")]


def test_a_check_that_hangs_has_failed_and_holds_nobody_up() -> None:
    ended = threading.Event()
    began = time.monotonic()
    found = run([("hangs", lambda: ok(str(ended.wait(30)))), ("works", lambda: ok("fine"))], 0.3)
    assert time.monotonic() - began < 5
    ended.set()
    assert [each.status for each in found] == ["failed", "ok"]
    assert found[0].found == "no answer within 0 s"


def broken() -> Finding:
    raise ZeroDivisionError("by zero,\nand more")


def test_a_bug_in_a_check_is_a_finding_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run([("broken", broken)], 10)
    assert found.status == "failed"
    assert found.found.startswith("ZeroDivisionError: by zero, and more (test_running.py, line ")
    assert "report" in found.advice
    assert capsys.readouterr() == ("", "")


def test_an_error_of_the_project_and_a_missing_package_say_what_they_are() -> None:
    def refused() -> Finding:
        raise DataError("x: no such file; give another one")

    def not_installed() -> Finding:
        import no_such_package_anywhere  # type: ignore[import-not-found]  # noqa: F401

        return ok("")

    first, second = run([("a", refused), ("b", not_installed)], 10)
    assert (first.found, first.advice) == ("x: no such file", "give another one")
    assert "No module named 'no_such_package_anywhere'" in second.found
    assert "versions" in second.advice


def test_a_shared_question_is_asked_once_and_its_error_reaches_everybody() -> None:
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        time.sleep(0.05)
        raise DataError("no")

    shared = Shared(ask)
    for _ in range(3):
        with pytest.raises(DataError, match="no"):
            shared.get(10)
    assert asked == [1]
    assert Shared(lambda: 7).get(10) == 7


def test_who_waits_for_a_shared_answer_waits_no_longer_than_they_will() -> None:
    ended = threading.Event()
    shared = Shared(lambda: ended.wait(30))
    with pytest.raises(NoAnswerError, match="no answer within 0 s"):
        shared.get(0.1)
    ended.set()
    assert shared.get(10) is True
