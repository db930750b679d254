import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cnn_jobs.cli import COMMANDS, cli
from cnn_jobs.errors import UserError
from cnn_jobs.tasks import TASKS


def output_of(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_tasks_lists_every_task_with_its_title() -> None:
    lines = output_of("tasks").splitlines()
    for task in TASKS.values():
        (line,) = [line for line in lines if line.split()[:1] == [task.name]]
        assert task.title[:50] in line  # a longer one wraps


def test_tasks_shows_parameters_and_the_reference() -> None:
    lines = {line.split()[0]: line for line in output_of("tasks").splitlines() if line.strip()}
    assert re.search(r"390,410 +sgd 0\.05 +-$", lines["task2"].rstrip())
    assert re.search(r"adam 0\.0007 +0\.780$", lines["task3-arch1"].rstrip())
    assert re.search(r"adam 0\.0007 +0\.814$", lines["task3e"].rstrip())


def test_describe_lists_layers_with_parameters_and_shapes() -> None:
    output = output_of("describe", "task2")
    assert "390,410 parameters" in output
    for parameters in ("2,432", "51,264", "204,928", "131,136", "650"):
        assert len(re.findall(rf"(?<![\d,]){parameters}(?![\d,])", output)) == 1
    for shape in ("32x32x32", "32x16x16", "64x16x16", "64x8x8", "128x8x8", "128x4x4", "2048"):
        assert shape in output


@pytest.mark.parametrize("name", TASKS)
def test_describe_accepts_every_task(name: str) -> None:
    output = output_of("describe", name)
    convolutions, norms = {"task2": (3, 0), "task3d-plain": (3, 0), "task4a": (20, 20)}.get(name, (3, 3))
    assert f"{name}: {TASKS[name].title}" in output
    assert output.count("Conv2D") == convolutions
    assert output.count("Batch normalization") == norms


def test_describe_shows_and_explains_costs() -> None:
    output = output_of("describe", "task4a")
    assert "11,181,642 parameters (8,398,858 trained, 2,782,784 frozen); for one image 1,813.57 M MACs" in output
    assert "receptive field" in output
    assert re.search(r"17 +Conv2D +512 +F=3, p=1, s=1 +- +512x7x7 +2,359,296 +435 px +115\.61 M +98\.0 KiB", output)


def test_describe_rejects_an_unknown_task() -> None:
    result = CliRunner().invoke(cli, ["describe", "task9"])
    assert isinstance(result.exception, UserError)
    assert "the tasks are task2, " in str(result.exception)


def imported_by(*arguments: str) -> tuple[str, set[str]]:
    """What the real program prints, and the top-level packages that it imports."""
    command = [sys.executable, "-X", "importtime", "-m", "cnn_jobs", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    modules = re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", result.stderr, flags=re.MULTILINE)
    return result.stdout, {module.split(".")[0] for module in modules}


HEAVY = {"torch", "torchvision", "mlflow", "numpy", "matplotlib", "boto3", "pandas"}


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    output, packages = imported_by("--help")
    assert "click" in packages  # the imports were recorded
    assert packages & HEAVY == set()
    listed = re.findall(r"^  (\w+)  +\S", output.split("Commands:")[1], flags=re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("arguments", [("tasks",), ("describe", "task2"), ("train", "--help"), ("--version",)])
def test_commands_that_only_read_the_registry_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    output, packages = imported_by(*arguments)
    assert output
    assert packages & HEAVY == set()
