"""``cnn-jobs logs``: from pod to pod, over broken connections, to the end of the Job."""

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

from cnn_jobs.cluster import logs
from tests.cluster.calls import Called, call
from tests.cluster.fake_api import FakeApi
from tests.cluster.job_files import DOCUMENTS, ROOT
from tests.conftest import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.02)


@contextmanager
def followed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[list[Called]]:
    """``logs -f`` while the block does what a cluster does; the result is there after it."""
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
        api.say(pod, f"attempt {number}", "  indented: {}")
        api.end_pod(pod, 75)
    assert call(monkeypatch, "logs", "task2") == Called(0, "attempt 2\n  indented: {}\n", "")
    both = call(monkeypatch, "logs", "task2", "--all-attempts").stdout.splitlines()
    assert both == ["attempt 1", "  indented: {}", "attempt 2", "  indented: {}"]


def test_several_indexes_are_told_apart(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    for index in (2, 0):
        api.say(api.run_pod(job, index), "a", "b")
    assert call(monkeypatch, "logs", "task2-seeds").stdout.splitlines() == ["[0] a", "[0] b", "[2] a", "[2] b"]
    assert call(monkeypatch, "logs", "task2-seeds", "--index", "2").stdout == "a\nb\n"
    refused = call(monkeypatch, "logs", "task2-seeds", "--index", "5")
    assert (refused.code, refused.error) == (2, "error: --index is 5, but Job task2-seeds has indexes 0 to 4")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nothing",), 2, "no Job nothing in namespace cnn-jobs"),
        (("-f", "nothing"), 2, "no Job nothing in namespace cnn-jobs"),
        (("task2",), 1, "Job task2 has no log yet (waiting); 'cnn-jobs logs -f task2' waits for it"),
        (("task2", "--index", "0"), 2, "--index is 0, but Job task2 has no indexes"),
        (("task2", "-f", "--all-attempts"), 2, "leave --all-attempts out"),
    ],
)
def test_what_has_no_log(
    arguments: tuple[str, ...], code: int, told: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add_job(DOCUMENTS["task2-job.yaml"])
    done = call(monkeypatch, "logs", *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert told in done.error


def test_following_waits_for_a_pod_and_goes_on_with_the_next_attempt(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    with followed(monkeypatch, "task2") as results:
        time.sleep(0.2)
        first = api.run_pod(job, running=False)
        time.sleep(0.2)
        api.start_pod(first)
        for number in range(5):
            api.say(first, f"first {number}")
            time.sleep(0.05)
        api.end_pod(first, 75)
        time.sleep(0.2)
        second = api.run_pod(job)
        api.say(second, "second")
        time.sleep(0.1)
        api.say(second, "the end")
        api.end_pod(second)
        time.sleep(0.2)
        assert not results
        api.finish_job("task2")
    (done,) = results
    assert done.code == 0
    assert done.stdout.splitlines() == [*(f"first {number}" for number in range(5)), "second", "the end"]
    told = done.stderr.splitlines()
    assert told[0] == "waiting for a pod of Job task2: waiting"
    assert f"waiting for a pod of Job task2: {first}: Pending: ContainerCreating" in told
    assert told.count(f"the next attempt: pod {second}") == 1


def test_a_broken_connection_and_an_api_server_that_is_away_lose_and_double_nothing(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    pod = api.run_pod(job)
    api.logs[pod].drop_after = [3, 100, 250, 40, 777]
    api.say(pod, "same", "same", stamp="2026-11-25T00:00:00.5Z")
    with followed(monkeypatch, "task2") as results:
        for number in range(40):
            api.say(pod, f"line {number}")
            time.sleep(0.01)
            if number == 10:
                api.fail("GET", "/", 503, "apiserver not ready", times=4)
        api.end_pod(pod)
        api.finish_job("task2")
    (done,) = results
    assert done.code == 0
    assert done.stdout.splitlines() == ["same", "same", *(f"line {number}" for number in range(40))]
    assert api.logs[pod].drop_after == []


def test_indexes_are_followed_together(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    with followed(monkeypatch, "task2-seeds") as results:
        pods = [api.run_pod(job, index) for index in range(3)]
        for number in range(5):
            for pod in pods:
                api.say(pod, f"line {number}")
        for pod in pods:
            api.end_pod(pod)
        api.finish_job("task2-seeds", "Failed", reason="FailedIndexes")
    (done,) = results
    assert done.code == 0
    for index in range(3):
        own = [line for line in done.stdout.splitlines() if line.startswith(f"[{index}] ")]
        assert own == [f"[{index}] line {number}" for number in range(5)]
    assert len(done.stdout.splitlines()) == 15


def test_following_ends_with_a_job_that_is_deleted(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    pod = api.run_pod(job)
    with followed(monkeypatch, "task2") as results:
        api.say(pod, "a line")
        time.sleep(0.2)
        api.on_delete(job)
    (done,) = results
    assert (done.code, done.stdout) == (0, "a line\n")


def test_a_refusal_in_mid_log_is_told(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.run_pod(api.add_job(DOCUMENTS["task2-job.yaml"]))
    api.fail("GET", "/log", 403, 'pods "x" is forbidden: User "me" cannot get resource "pods/log"')
    done = call(monkeypatch, "logs", "-f", "task2")
    assert done.code == 2
    assert "ask for the Role cnn-jobs-submit" in done.error


def test_ctrl_c_ends_it_with_130(api: FakeApi) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    api.say(api.run_pod(job), "a line")
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


def test_a_reader_that_goes_away_is_no_traceback(api: FakeApi) -> None:
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    pod = api.run_pod(job)
    api.say(pod, *(f"line {number}" for number in range(5000)))
    command = f"{sys.executable} -m cnn_jobs logs task2 | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout == "line 0\n"
    assert "Traceback" not in done.stderr
