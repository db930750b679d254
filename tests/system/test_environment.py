"""What Kubernetes says of a pod."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.errors import UserError
from cnn_jobs.system import environment


@pytest.mark.parametrize(
    ("uid", "index", "key"),
    [
        ("", "", ""),
        ("", "3", ""),
        ("6f2c-11", "", "6f2c-11"),
        ("6f2c-11", "3", "6f2c-11-3"),
        ("6f2c-11", "0", "6f2c-11-0"),
    ],
)
def test_a_jobs_key_is_its_uid_and_index(monkeypatch: pytest.MonkeyPatch, uid: str, index: str, key: str) -> None:
    monkeypatch.setenv("CNN_JOBS_JOB_UID", uid)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    assert environment.job_run_key() == key


def test_time_limits_are_a_pods_or_a_laptops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert not environment.in_pod()
    assert (environment.default_ship_deadline_s(), environment.look_up_timeout_s()) == (60, 5)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert environment.in_pod()
    assert (environment.default_ship_deadline_s(), environment.look_up_timeout_s()) == (3600, 300)


@given(st.text(max_size=140))
def test_an_accepted_key_is_the_name_of_one_file_and_safe_in_a_filter(key: str) -> None:
    try:
        environment.check_run_key(key)
    except UserError:
        return
    assert PurePosixPath("dir", key).parent == PurePosixPath("dir")
    assert PurePosixPath(key).name == key
    assert len(key) <= 128
    assert not set("'\"`\\ \n/") & set(key)


@pytest.mark.parametrize("key", ["a", "run-1", "6f2c9a3e-1b2d-4c5e-8f90-aabbccddeeff-12", "A.b_c"])
def test_usual_keys_are_accepted(key: str) -> None:
    assert environment.check_run_key(key) == key


@pytest.mark.parametrize("key", ["", "..", ".hidden", "-x", "a/b", "a b", "a'b", "a" * 129, "a\n"])
def test_others_are_refused(key: str) -> None:
    with pytest.raises(UserError):
        environment.check_run_key(key)


def test_where_on_kubernetes_a_run_is_comes_from_the_jobs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    assert environment.pod_facts() == {}
    monkeypatch.setenv("CNN_JOBS_JOB_UID", "6f2c-11")
    assert environment.job_group() == ""  # one run alone is its own group
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    monkeypatch.setenv("CNN_JOBS_POD", "task2-3-abc")
    monkeypatch.setenv("CNN_JOBS_NODE", "node-1")
    assert environment.job_group() == "6f2c-11"
    assert environment.pod_facts() == {
        "job_uid": "6f2c-11",
        "completion_index": "3",
        "pod": "task2-3-abc",
        "node": "node-1",
    }


@pytest.mark.parametrize(
    ("pod", "wanted", "may"), [("", "", True), ("1", "", False), ("1", "1", True), ("", "0", False), ("1", "0", False)]
)
def test_pods_download_nothing_unless_they_are_told_to(
    monkeypatch: pytest.MonkeyPatch, pod: str, wanted: str, may: bool
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", pod)
    monkeypatch.setenv("CNN_JOBS_DOWNLOAD", wanted)
    assert environment.may_download() is may


def test_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_DOWNLOAD", "yes")
    with pytest.raises(UserError, match="must be 0 or 1"):
        environment.may_download()


def test_mlflow_in_a_pod_is_the_stacks_service(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_jobs.tracking.connection import tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri().startswith("sqlite:///")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert tracking_uri() == environment.POD_TRACKING_URI
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert tracking_uri() == "http://other:5000"
