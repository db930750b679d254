import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A test is itself run by make, whose options and variables a second make would take over.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}}


def make(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60)


def phony_targets() -> list[str]:
    declared = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return " ".join(declared).split()


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = make()
    assert shown.returncode == 0, shown.stderr
    listed = re.findall(r"^  make ([a-z0-9-]+) {2,}(\S.*)$", shown.stdout, re.MULTILINE)
    assert [name for name, _ in listed] == phony_targets()
    assert {"setup", "local-run", "local-stop", "test", "test-all", "lint"} <= set(phony_targets())


def test_local_run_passes_task_data_and_arguments() -> None:
    dry = make("--dry-run", "local-run", "TASK=task4a", "DATA=/some where/data.zip", "ARGS=--epochs 1 --seed 3")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.rstrip().endswith("train 'task4a' --data '/some where/data.zip' --epochs 1 --seed 3")


def test_local_run_defaults_come_from_the_makefile_and_not_from_the_environment() -> None:
    dry = make("--dry-run", "local-run", TASK="other", DATA="/data")
    assert "train 'task2' --data 'shapes'" in dry.stdout


def test_local_run_says_that_it_leaves_another_tracking_server_aside() -> None:
    dry = make("--dry-run", "local-run")
    assert "is left aside" in dry.stdout
    assert "MLFLOW_TRACKING_URI" in make("help").stdout


@pytest.mark.parametrize("target", ["test", "test-all"])
def test_test_targets_leave_out_what_a_plain_machine_cannot_run(target: str) -> None:
    dry = make("--dry-run", target)
    assert "not cluster and not gpu" in dry.stdout
    assert ("not slow and not integration" in dry.stdout) == (target == "test")


def sandbox(directory: Path, python: str) -> Path:
    """A tree with only the Makefile, and a `python3` that is the given shell script."""
    (directory / "Makefile").write_text((ROOT / "Makefile").read_text())
    (directory / "setup.cfg").touch()
    (directory / "pyproject.toml").touch()
    interpreter = directory / "fake python"
    interpreter.write_text(f"#!/bin/sh\n{python}\n")
    interpreter.chmod(0o755)
    return interpreter


def setup_in(directory: Path, interpreter: Path) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--no-print-directory", "setup", f"PYTHON={interpreter}"]
    return subprocess.run(command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            'case "$*" in *version_info*) exit 1;; *) echo Python 3.9.2;; esac',
            "is Python 3.9.2, 3.11 or later is needed",
        ),
        ('case "$*" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_setup_says_in_one_line_what_is_missing(tmp_path: Path, python: str, message: str) -> None:
    done = setup_in(tmp_path, sandbox(tmp_path, python))
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert message in first
    assert all(line.startswith("make: ***") for line in rest)
    assert not (tmp_path / ".venv").exists()


def test_setup_says_that_python_is_missing(tmp_path: Path) -> None:
    sandbox(tmp_path, "")
    done = setup_in(tmp_path, tmp_path / "no-such-python")
    assert done.returncode != 0
    assert "not found; install Python 3.11 or later" in done.stderr


# A Python whose `-m venv DIR` puts a copy of itself there, and whose pip does what the file `pip-exit` says.
VENV_MAKER = """
case "$*" in
    "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
    *"pip --version") exit 0;;
    *"install"*) echo "$*" >> installs; exit "$(cat pip-exit)";;
esac
"""


def test_a_failed_install_is_tried_again_and_a_good_one_is_kept(tmp_path: Path) -> None:
    interpreter = sandbox(tmp_path, VENV_MAKER)
    (tmp_path / "pip-exit").write_text("1")
    assert setup_in(tmp_path, interpreter).returncode != 0
    (tmp_path / "pip-exit").write_text("0")
    for _ in range(2):
        done = setup_in(tmp_path, interpreter)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "installs").read_text().splitlines()) == 2

    stamp = (tmp_path / ".venv" / ".installed-run").stat().st_mtime
    os.utime(tmp_path / "setup.cfg", (stamp + 5, stamp + 5))
    assert setup_in(tmp_path, interpreter).returncode == 0
    assert len((tmp_path / "installs").read_text().splitlines()) == 3


def test_ci_script_is_a_bash_script_that_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    wanted = re.findall(r"^stage .*make (\S+)$", script.read_text(), re.MULTILINE)
    assert wanted[-2:] == ["lint", "test-all"]
