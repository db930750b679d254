"""Where a result came from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from cnn_jobs.system import environment
from cnn_jobs.training.device import device_name


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


def test_a_clean_checkout_gives_its_commit(checkout: Path) -> None:
    assert environment.git_facts(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}


def test_a_changed_file_makes_it_dirty(checkout: Path) -> None:
    (checkout / "file").write_text("two")
    assert environment.git_facts(checkout)["dirty"] is True


def test_without_a_checkout_nothing_is_made_up(tmp_path: Path) -> None:
    assert environment.git_facts(tmp_path) == {"commit": "", "dirty": None}


def test_a_folder_inside_another_projects_checkout_is_not_of_it(checkout: Path) -> None:
    (checkout / "sub").mkdir()
    assert environment.git_facts(checkout / "sub") == {"commit": "", "dirty": None}


def test_an_image_says_its_commit_by_the_environment(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_GIT_COMMIT", "abc")
    monkeypatch.setenv("CNN_JOBS_GIT_DIRTY", "1")
    assert environment.git_facts(checkout) == {"commit": "abc", "dirty": True}
    monkeypatch.setenv("CNN_JOBS_GIT_DIRTY", "0")
    assert environment.git_facts(checkout) == {"commit": "abc", "dirty": False}
    # Built outside of a checkout: nobody knows, which is not the same as clean.
    monkeypatch.setenv("CNN_JOBS_GIT_DIRTY", "")
    assert environment.git_facts(checkout)["dirty"] is None
    monkeypatch.setenv("CNN_JOBS_GIT_COMMIT", "")
    assert environment.git_facts(checkout.parent / "elsewhere") == {"commit": "", "dirty": None}


def test_the_facts_are_json_with_the_versions_that_run() -> None:
    facts = json.loads(json.dumps(environment.lineage(device_name(torch.device("cpu")), 3)))
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert facts["threads"] == 3
    assert facts["device"].startswith("cpu (")
    assert environment.version_of("no-such-package") == ""
