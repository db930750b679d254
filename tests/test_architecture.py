"""The house that docs/architecture.md draws: rooms on floors, imports that point down, names that stand once."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cnn_jobs
from cnn_jobs.cli import main
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.tracking import names

PACKAGE = Path(cnn_jobs.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
# Lowest first. Rooms on one floor do not know each other.
FLOORS = (
    {"errors"},
    {"system", "networks", "recipe"},
    {"data", "tasks", "local_server"},
    {"models", "course"},
    {"training"},
    {"tracking", "distributed"},
    {"runs", "report", "interpret", "doctor", "cluster", "monitoring"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Rooms that a module imports from, inside of functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found = [f"{module}.{alias.name}" for alias in node.names] if module == "cnn_jobs" else [module]
        else:
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in found:
            if name.startswith("cnn_jobs.") and not name.endswith("__version__"):
                yield name.split(".")[1]


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_point_down(room: str) -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in MODULES
        if room_of(path) == room
        for other in imports(path)
        if other != room and FLOOR[other] >= FLOOR[room]
    ]
    assert upward == []


def test_names_of_tags_metrics_and_artifacts_are_literals_in_one_module() -> None:
    values = {value for value in vars(names).values() if isinstance(value, str) and re.search(r"\w[./]\w", value)}
    assert len(values) > 60
    repeated = [
        f"{path.relative_to(PACKAGE)}, line {node.lineno}: {node.value}"
        for path in MODULES
        if path != Path(names.__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in values
    ]
    assert repeated == []


def test_the_page_draws_the_floors() -> None:
    (drawing,) = re.findall(r"```\n(floor.*?)```", PAGE.read_text(), flags=re.DOTALL)
    floors: list[set[str]] = []
    for number, room in re.findall(r"^(?:floor)? *(\d?) +(\w+)(?:/|\.py)", drawing, flags=re.MULTILINE):
        if number:
            floors.insert(0, set())
        floors[0].add(room)
    assert tuple(floors) == FLOORS[:-1]


def test_the_page_names_files_that_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE.read_text()))
    assert len(named) > 30
    assert [name for name in named if not (PACKAGE / name).is_file() and not (PACKAGE.parent / name).is_file()] == []


def test_pages_name_test_files_and_modules_that_exist() -> None:
    root = PACKAGE.parent
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]
    named = {
        f"{page.name}: {path}"
        for page in pages
        if page.name != "log.md"  # which tells of the past
        for path in re.findall(r"`((?:cnn_jobs|tests|benchmarks|k8s)/[\w./-]+\.\w+)", page.read_text())
        if not (root / path).exists()
    }
    assert named <= {"image.md: k8s/image/torch-cpu.txt"}  # made where the index can be reached


def test_the_page_names_functions_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`, `([\w.]+)`", PAGE.read_text())
    assert len(named) > 10
    for module, name in named:
        assert re.search(rf"\b(?:def|class) {name.split('.')[-1]}\b", (PACKAGE / module).read_text()), (module, name)


@pytest.mark.filterwarnings("default")
def test_eight_functions_lead_from_main_to_the_gradient(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[str] = []
    backward = torch.Tensor.backward

    def note(self: torch.Tensor, *arguments: object) -> None:
        stack = inspect.stack(context=0)
        frames[:] = [each.function for each in stack[::-1] if Path(each.filename).is_relative_to(PACKAGE)]
        backward(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "backward", note)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    write_prepared(tiny_dataset, tmp_path / "small.npz", compressed=False)
    small = ["--data", str(tmp_path / "small.npz"), "--epochs", "1", "--batch-size", "18", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["cnn-jobs", "train", "task2", "--state-dir", str(tmp_path / "state"), *small])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert frames == ["main", "train", "_train", "train_run", "complete", "_train", "train", "take_step"]
