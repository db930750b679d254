"""``cnn-jobs logs``: each line once, from pod to pod, despite broken connections, until the Job is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.cluster import logs
from cnn_jobs.cluster.logs import LineFilter
from tests.helpers.calls import Called, call
from tests.helpers.job_files import DOCUMENTS, ROOT
from tests.helpers.kubernetes_api import FakeApi
from tests.helpers.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.02)


@contextmanager
def followed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[list[Called]]:
    """Runs ``logs -f`` during the block; its result is in the list afterwards."""
    results: list[Called] = []
    thread = threading.Thread(target=lambda: results.append(call(monkeypatch, "logs", "-f", *arguments)))
    thread.start()
    yield results
    thread.join(20)
    assert not thread.is_alive()


def test_the_log_of_the_last_pod_or_of_all(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    for number in (1, 2):
        pod = api.run_pod(job)
        api.write(pod, f"attempt {number}", "  indented: {}")
        api.end_pod(pod, 75)
    assert call(monkeypatch, "logs", "task2") == Called(0, "attempt 2\n  indented: {}\n", "")
    both = call(monkeypatch, "logs", "task2", "--all-attempts").stdout.splitlines()
    assert both == ["attempt 1", "  indented: {}", "attempt 2", "  indented: {}"]


def test_lines_of_several_indexes_are_prefixed(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    for index in (2, 0):
        api.write(api.run_pod(job, index), "a", "b")
    assert call(monkeypatch, "logs", "task2-seeds").stdout.splitlines() == ["[0] a", "[0] b", "[2] a", "[2] b"]
    assert call(monkeypatch, "logs", "task2-seeds", "--index", "2").stdout == "a\nb\n"
    refused = call(monkeypatch, "logs", "task2-seeds", "--index", "5")
    assert (refused.code, refused.error) == (2, "error: --index is 5, but Job task2-seeds has indexes 0 to 4")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("nothing",), 2, "no Job nothing in namespace cnn-jobs"),
        (("-f", "nothing"), 2, "no Job nothing in namespace cnn-jobs"),
        (("task2",), 1, "Job task2 has no log yet (waiting); 'cnn-jobs logs -f task2' waits for it"),
        (("task2", "--index", "0"), 2, "--index is 0, but Job task2 has no indexes"),
        (("task2", "-f", "--all-attempts"), 2, "leave --all-attempts out"),
    ],
)
def test_a_log_that_cannot_be_shown_is_an_error(
    arguments: tuple[str, ...], code: int, error: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add_job(DOCUMENTS["task2-job.yaml"])
    done = call(monkeypatch, "logs", *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert error in done.error


def test_following_waits_for_a_pod_and_continues_with_the_next_attempt(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    with followed(monkeypatch, "task2") as results:
        time.sleep(0.2)
        first = api.run_pod(job, running=False)
        time.sleep(0.2)
        api.start_pod(first)
        for number in range(5):
            api.write(first, f"first {number}")
            time.sleep(0.05)
        api.end_pod(first, 75)
        time.sleep(0.2)
        second = api.run_pod(job)
        api.write(second, "second")
        time.sleep(0.1)
        api.write(second, "the end")
        api.end_pod(second)
        time.sleep(0.2)
        assert not results
        api.finish_job("task2")
    (done,) = results
    assert done.code == 0
    assert done.stdout.splitlines() == [*(f"first {number}" for number in range(5)), "second", "the end"]
    messages = done.stderr.splitlines()
    assert messages[0] == "waiting for a pod of Job task2: waiting"
    assert f"waiting for a pod of Job task2: {first}: Pending: ContainerCreating" in messages
    assert messages.count(f"the next attempt: pod {second}") == 1


def test_broken_connections_and_an_unavailable_server_neither_lose_nor_repeat_lines(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    pod = api.run_pod(job)
    api.logs[pod].drop_after = [3, 100, 250, 40, 777]
    api.write(pod, "same", "same", stamp="2026-11-25T00:00:00.5Z")
    with followed(monkeypatch, "task2") as results:
        for number in range(40):
            api.write(pod, f"line {number}")
            time.sleep(0.01)
            if number == 10:
                api.fail("GET", "/", 503, "apiserver not ready", times=4)
        api.end_pod(pod)
        api.finish_job("task2")
    (done,) = results
    assert done.code == 0
    assert done.stdout.splitlines() == ["same", "same", *(f"line {number}" for number in range(40))]
    assert api.logs[pod].drop_after == []


def test_all_indexes_are_followed_at_once(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    with followed(monkeypatch, "task2-seeds") as results:
        pods = [api.run_pod(job, index) for index in range(3)]
        for number in range(5):
            for pod in pods:
                api.write(pod, f"line {number}")
        for pod in pods:
            api.end_pod(pod)
        api.finish_job("task2-seeds", "Failed", reason="FailedIndexes")
    (done,) = results
    assert done.code == 0
    for index in range(3):
        own = [line for line in done.stdout.splitlines() if line.startswith(f"[{index}] ")]
        assert own == [f"[{index}] line {number}" for number in range(5)]
    assert len(done.stdout.splitlines()) == 15


def test_following_ends_when_the_job_is_deleted(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    pod = api.run_pod(job)
    with followed(monkeypatch, "task2") as results:
        api.write(pod, "a line")
        time.sleep(0.2)
        api.on_delete(job)
    (done,) = results
    assert (done.code, done.stdout) == (0, "a line\n")


def test_a_refused_log_is_an_error(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.run_pod(api.add_job(DOCUMENTS["task2-job.yaml"]))
    api.fail("GET", "/log", 403, 'pods "x" is forbidden: User "me" cannot get resource "pods/log"')
    done = call(monkeypatch, "logs", "-f", "task2")
    assert done.code == 2
    assert "ask for the Role cnn-jobs-submit" in done.error


def test_ctrl_c_exits_with_130(api: FakeApi) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    api.write(api.run_pod(job), "a line")
    command = [sys.executable, "-m", "cnn_jobs", "logs", "-f", "task2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "a line\n"
            until(lambda: ("get", "pods/log") in api.calls)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "")
    assert "task2" in api.jobs


def test_a_closed_pipe_is_no_traceback(api: FakeApi) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    pod = api.run_pod(job)
    api.write(pod, *(f"line {number}" for number in range(5000)))
    command = f"{sys.executable} -m cnn_jobs logs task2 | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout == "line 0\n"
    assert "Traceback" not in done.stderr


LINES = [
    b"2026-11-25T14:00:00.9Z one",
    b"2026-11-25T14:00:01.123456789Z two",
    b"2026-11-25T14:00:01.123456789Z two",  # equal text and time, but another line
    b"2026-11-25T14:00:01Z out of order, as stdout and stderr may be",
    b"2026-11-25T14:00:01.5Z ",
    b"2026-11-25T15:00:02.000000001+01:00 \xc3\xa9 and \xff",
    b"failed to watch the log: too many open files",
]
TEXTS = ["one", "two", "two", "out of order, as stdout and stderr may be", "", "é and �", LINES[-1].decode()]
LOG = b"".join(line + b"\n" for line in LINES)


def broken(data: bytes, *, size: int = 7) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
    raise ConnectionError("cut off")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_are_shown_without_their_times(size: int) -> None:
    chunks = [LOG[start : start + size] for start in range(0, len(LOG), size)]
    assert list(LineFilter().read(chunks, complete=True)) == TEXTS


@given(st.lists(st.integers(0, len(LOG)), max_size=6))
def test_responses_cut_off_anywhere_neither_lose_nor_repeat_lines(cuts: list[int]) -> None:
    lines = LineFilter()
    found: list[str] = []
    for cut in cuts:
        with pytest.raises(ConnectionError):
            found.extend(lines.read(broken(LOG[:cut]), complete=False))
    assert found + list(lines.read([LOG], complete=True)) == TEXTS


def test_an_unterminated_line_counts_only_at_the_end() -> None:
    lines = LineFilter()
    assert list(lines.read([LOG[:20]], complete=False)) == []
    assert list(lines.read([LOG[:-1]], complete=False)) == TEXTS[:-1]
    assert list(lines.read([LOG[:-1]], complete=True)) == TEXTS[-1:]


def test_the_nodes_message_that_a_log_is_gone_is_no_line() -> None:
    lines = LineFilter()
    assert list(lines.read([LOG], complete=False)) == TEXTS
    assert list(lines.read([b"unable to retrieve container logs for containerd://20b5"], complete=True)) == []
    assert list(lines.read([LOG, b"2026-11-25T14:00:09Z more\n"], complete=True)) == ["more"]


def test_a_rotated_log_continues_after_the_latest_time() -> None:
    lines = LineFilter()
    assert list(lines.read([LOG], complete=False)) == TEXTS
    fresh = b"2026-11-25T14:00:02.5Z three\n"
    assert list(lines.read([b"\n".join(LINES[4:6]), b"\n", fresh], complete=False)) == ["three"]
    more = fresh + b"2026-11-25T14:00:03Z four\n"
    assert list(lines.read([b"\n".join(LINES[4:6]), b"\n", more], complete=True)) == ["four"]
    assert list(lines.read([b"2026-11-25T14:00:04Z five\n"], complete=True)) == ["five"]
