"""Where a process runs: its pod and Job, its code and packages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.errors import UserError
from cnn_jobs.system import environment
from cnn_jobs.training.device import device_name


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)


# -- Kubernetes --------------------------------------------------------------------------------------------------------


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
def test_key_of_a_job_is_its_uid_and_index(monkeypatch: pytest.MonkeyPatch, uid: str, index: str, key: str) -> None:
    monkeypatch.setenv("CNN_JOBS_JOB_UID", uid)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    assert environment.job_run_key() == key


def test_facts_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.pod_facts() == {}
    monkeypatch.setenv("CNN_JOBS_JOB_UID", "6f2c-11")
    assert environment.job_group() == ""  # a single run is its own group
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


def test_pods_have_longer_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not environment.in_pod()
    assert (environment.default_ship_deadline_s(), environment.look_up_timeout_s()) == (60, 5)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert environment.in_pod()
    assert (environment.default_ship_deadline_s(), environment.look_up_timeout_s()) == (3600, 300)


@given(st.text(max_size=140))
def test_accepted_key_is_a_file_name_and_safe_in_a_filter(key: str) -> None:
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
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(UserError):
        environment.check_run_key(key)


@pytest.mark.parametrize(
    ("pod", "setting", "may"), [("", "", True), ("1", "", False), ("1", "1", True), ("", "0", False), ("1", "0", False)]
)
def test_pods_download_nothing_unless_allowed(
    monkeypatch: pytest.MonkeyPatch, pod: str, setting: str, may: bool
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", pod)
    monkeypatch.setenv("CNN_JOBS_DOWNLOAD", setting)
    assert environment.may_download() is may


def test_invalid_download_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_DOWNLOAD", "yes")
    with pytest.raises(UserError, match="must be 0 or 1"):
        environment.may_download()


# -- code and packages -------------------------------------------------------------------------------------------------


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit_of_a_checkout(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert environment.git_facts(checkout) == {"commit": commit, "dirty": False}
    (checkout / "file").write_text("two")
    assert environment.git_facts(checkout) == {"commit": commit, "dirty": True}
    # A folder inside another project's checkout does not belong to it.
    (checkout / "sub").mkdir()
    assert environment.git_facts(checkout / "sub") == {"commit": "", "dirty": None}


def test_folder_without_a_checkout_has_no_commit(tmp_path: Path) -> None:
    assert environment.git_facts(tmp_path) == {"commit": "", "dirty": None}


@pytest.mark.parametrize(
    ("commit", "dirty", "expected"),
    [
        ("abc", "1", {"commit": "abc", "dirty": True}),
        ("abc", "0", {"commit": "abc", "dirty": False}),
        ("abc", "", {"commit": "abc", "dirty": None}),  # built outside a checkout: unknown is not clean
        ("", "", {"commit": "", "dirty": None}),
    ],
)
def test_commit_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, dirty: str, expected: dict[str, object]
) -> None:
    monkeypatch.setenv("CNN_JOBS_GIT_COMMIT", commit)
    monkeypatch.setenv("CNN_JOBS_GIT_DIRTY", dirty)
    assert environment.git_facts(tmp_path) == expected


def test_lineage_is_json_with_installed_versions() -> None:
    facts = json.loads(json.dumps(environment.lineage(device_name(torch.device("cpu")), 3)))
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert facts["threads"] == 3
    assert facts["device"].startswith("cpu (")
    assert environment.version_of("no-such-package") == ""
