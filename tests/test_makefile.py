"""The Makefile: help, setup, the local run, the images and the tests."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cnn_jobs import __version__

ROOT = Path(__file__).parent.parent
# Without the options and variables of a make that runs the tests.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}}


def make(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60)


def phony_targets() -> list[str]:
    declared = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return " ".join(declared).split()


def test_help_is_the_default_target_and_lists_all() -> None:
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


def test_local_run_warns_that_it_ignores_another_server() -> None:
    dry = make("--dry-run", "local-run")
    assert "is ignored" in dry.stdout
    assert "MLFLOW_TRACKING_URI" in make("help").stdout


@pytest.mark.parametrize("target", ["test", "test-all"])
def test_test_targets_skip_what_needs_special_machines(target: str) -> None:
    dry = make("--dry-run", target)
    assert "not cluster and not gpu and not image" in dry.stdout
    assert ("not slow and not integration" in dry.stdout) == (target == "test")


def sandbox(directory: Path, python: str) -> Path:
    """A folder with only the Makefile and a Python interpreter that is this shell script."""
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
            "is Python 3.9.2, but must be 3.11 or later",
        ),
        ('case "$*" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_setup_reports_what_is_missing(tmp_path: Path, python: str, message: str) -> None:
    done = setup_in(tmp_path, sandbox(tmp_path, python))
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert message in first
    assert all(line.startswith("make: ***") for line in rest)
    assert not (tmp_path / ".venv").exists()


def test_setup_reports_a_missing_python(tmp_path: Path) -> None:
    sandbox(tmp_path, "")
    done = setup_in(tmp_path, tmp_path / "no-such-python")
    assert done.returncode != 0
    assert "not found; install Python 3.11 or later" in done.stderr


# A Python whose `-m venv DIR` copies itself there, and whose pip exits with the code in the file `pip-exit`.
VENV_MAKER = """
case "$*" in
    "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
    *"pip --version") exit 0;;
    *"install"*) echo "$*" >> installs; exit "$(cat pip-exit)";;
esac
"""


def test_failed_install_is_repeated_and_successful_one_kept(tmp_path: Path) -> None:
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


def test_ci_script_is_executable_bash() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    targets = re.findall(r"^stage .*make (\S+)$", script.read_text(), re.MULTILINE)
    assert targets[-2:] == ["lint", "test-all"]


def fake(directory: Path, name: str, answers: bool = True) -> None:
    """A builder that prints its arguments; without a daemon that ``answers``, 'version' fails."""
    program = directory / name
    program.write_text(f'#!/bin/sh\n[ "$1" = version ] && exit {0 if answers else 1}\necho "{name} $*"\n')
    program.chmod(0o755)


def plain_path(directory: Path) -> str:
    """A PATH with only the programs that a recipe uses."""
    for name in ("sh", "git", "sed", "awk", "make"):
        found = shutil.which(name)
        assert found
        (directory / name).symlink_to(found)
    return str(directory)


@pytest.mark.parametrize(
    ("builders", "chosen"),
    [
        ({"docker": True, "podman": True, "buildah": True}, "docker build"),
        ({"docker": False, "podman": True, "buildah": True}, "podman build"),
        ({"docker": False, "buildah": True}, "buildah build --layers"),
    ],
)
def test_image_is_built_with_the_first_available_builder(
    tmp_path: Path, builders: dict[str, bool], chosen: str
) -> None:
    for name, answers in builders.items():
        fake(tmp_path, name, answers)
    ran = make("image", "mlflow-image", PATH=plain_path(tmp_path))
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"{chosen} --file Dockerfile --tag cnn-jobs:{__version__} --build-arg BASE=docker.io/")
    assert re.search(
        rf" VERSION={__version__} --build-arg GIT_COMMIT=[0-9a-f]{{40}} --build-arg GIT_DIRTY=[01] ", first
    )
    assert first.endswith(" DATA_FILE= .")
    assert second.startswith(f"{chosen} --tag cnn-jobs-mlflow:3.17.2-1 --build-arg BASE=docker.io/")
    assert second.endswith(" mlflow")


def test_error_without_a_builder_names_what_to_install(tmp_path: Path) -> None:
    fake(tmp_path, "docker", answers=False)
    path = plain_path(tmp_path)
    for target in ("image", "mlflow-image", "image-push"):
        ran = make(target, "REGISTRY=registry.example", PATH=path)
        assert ran.returncode != 0
        first, *rest = ran.stderr.splitlines()
        assert first.startswith("found no docker with a running daemon, no podman, no buildah: install one")
        assert all(line.startswith("make: ***") for line in rest)


def test_variables_apply_to_the_image(tmp_path: Path) -> None:
    fake(tmp_path, "podman")
    (tmp_path / "odd name").mkdir()
    settings = ["IMAGE=x:1", "BASE=python@sha256:0", "BUILD_FLAGS=--secret id=pip,src=pip.conf", "BUILDER=podman"]
    ran = make("image", *settings, PATH=plain_path(tmp_path))
    assert ran.returncode == 0, ran.stderr
    for part in ("--tag x:1 ", "BASE=python@sha256:0 ", "--secret id=pip,src=pip.conf ."):
        assert part in ran.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["VARIANT=rocm"], "VARIANT is 'rocm', but must be cuda or cpu"),
        (["DATA_FILE=../data.npz"], "DATA_FILE is '../data.npz', but must be a file beside the Makefile"),
        (["DATA_FILE=none.npz"], "DATA_FILE: none.npz does not exist; 'cnn-jobs data prepare SRC none.npz' makes it"),
    ],
)
def test_invalid_settings_are_one_line_errors(settings: list[str], message: str) -> None:
    ran = make("image", "BUILDER=echo", *settings)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[0] == message


def test_cpu_variant_needs_its_lock_and_has_its_own_tag(tmp_path: Path) -> None:
    for name in ("Makefile", "cnn_jobs/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    command = ["make", "--no-print-directory", "image", "VARIANT=cpu", "BUILDER=echo"]
    ran = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    assert ran.stderr.startswith("k8s/image/torch-cpu.txt does not exist; 'make lock-cpu' writes it from https://")
    (tmp_path / "k8s/image").mkdir(parents=True)
    (tmp_path / "k8s/image/torch-cpu.txt").touch()
    ran = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert f"--tag cnn-jobs:{__version__}-cpu " in ran.stdout
    # Outside a checkout the commit is unknown.
    assert "GIT_COMMIT= --build-arg GIT_DIRTY= " in ran.stdout


def test_images_are_tagged_and_pushed() -> None:
    ran = make("image-push", "BUILDER=echo", "REGISTRY=registry.example/team")
    assert ran.returncode == 0, ran.stderr
    jobs, server = f"cnn-jobs:{__version__}", "cnn-jobs-mlflow:3.17.2-1"
    expected = [f"{do}registry.example/team/{name}" for name in (jobs, server) for do in (f"tag {name} ", "push ")]
    assert ran.stdout.splitlines() == expected
    ran = make("image-push", "BUILDER=echo")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[0] == "REGISTRY is not set: make image-push REGISTRY=registry.example/team"


def test_help_lists_the_variables_of_the_images() -> None:
    shown = make("help").stdout
    for name in ("VARIANT", "IMAGE", "MLFLOW_IMAGE", "BASE", "DATA_FILE", "BUILDER", "BUILD_FLAGS", "REGISTRY"):
        assert f"{name}=" in shown


@pytest.mark.parametrize("given", [{}, {"KUBECONFIG": "/nowhere"}, {"E2E_IMAGE": "cnn-jobs:0.1.0"}])
def test_e2e_fails_without_its_settings(given: dict[str, str]) -> None:
    environment = {name: given.get(name, "") for name in ("KUBECONFIG", "E2E_IMAGE")}
    ran = make("--assume-old=.venv/.installed-test", "e2e", **environment)
    assert ran.returncode != 0
    assert ran.stderr.splitlines()[0] == "make e2e needs KUBECONFIG and E2E_IMAGE: see docs/e2e.md"
