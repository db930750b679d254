"""'manifests check' reports every change of a rendered file, and its line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cnn_jobs.cluster.drift import compare, differences
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import CnnJobsError, UserError
from tests.helpers.job_files import DOCUMENTS, PATHS

RENDER = "'cnn-jobs manifests render' rewrites it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the rendered files."""
    for path in PATHS:
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_each_changed_deleted_or_added_line_is_reported(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    assert list(compare(text, text)) == []
    for number, line in enumerate(lines, start=1):
        before, after = lines[: number - 1], lines[number:]
        for changed in (line.replace("\n", "x\n"), " " + line, line.replace("\n", "\r\n"), f'"{line.strip()}"\n'):
            (found,) = compare("".join([*before, changed, *after]), text)
            assert found.startswith(f"line {number}: expected ")
        (deleted,) = compare("".join([*before, *after]), text)
        assert deleted.endswith(", found nothing")
        (added,) = compare("".join([*before, line, "new: 1\n", *after]), text)
        assert added == f"line {number + 1}: expected nothing, found 'new: 1'"


def test_a_block_of_another_length_is_one_difference() -> None:
    (found,) = compare("a: 1\nb: 2\nd: 4\n", "a: 1\nb: 0\nc: 3\nd: 4\n")
    assert found == "line 2: expected 'b: 0\\nc: 3', found 'b: 2'"
    (cut,) = compare("a: 1\n", "a: 1\n" + "b: 2\n" * 100)
    assert len(cut) < 150


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (lambda text: text + "\n", 1),
        (lambda text: text.rstrip("\n"), 1),
        (lambda text: "\ufeff" + text, 1),
        (lambda text: "---\n" + text, 1),
        (lambda text: f"{text}---\nkind: Secret\n", 1),
        (lambda text: text.replace("restartPolicy: Never", "restartPolicy: 'Never'"), 1),
        (lambda text: text.replace("\n", "\r\n"), len((PATHS[0].parent / "task2-job.yaml").read_text().splitlines())),
        (lambda text: "", 1),
        (lambda text: "a: [", 1),
    ],
)
def test_another_form_of_a_file_is_reported(other: object, lines: int, folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_bytes(other(path.read_text()).encode())  # type: ignore[operator]
    found = differences(folder, Settings())
    assert len(found) == lines
    for line in found:
        assert line.startswith(f"{path}: line ")
        assert line.endswith(f"; {RENDER}")
        assert "\n" not in line


def test_bytes_that_are_no_text_are_reported(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_bytes(path.read_bytes().replace(b"backoffLimit", b"backoffLimi\xff"))
    (line,) = differences(folder, Settings())
    assert "expected 'backoffLimit: 3', found 'backoffLimi\ufffd: 3'" in line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_missing_file_is_reported(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (line,) = differences(folder, Settings())
    assert line == f"{folder / name}: missing, expected Job {name.removesuffix('-job.yaml')}; {RENDER}"


def test_a_surplus_job_file_is_reported_and_other_files_are_ignored(folder: Path) -> None:
    (folder / "task9-job.yaml").write_text((folder / "task2-job.yaml").read_text())
    (folder / "kustomization.yaml").write_text("resources: []\n")
    (line,) = differences(folder, Settings())
    assert line == f"{folder / 'task9-job.yaml'}: no Job of the registry has this file; delete it"


def test_all_differences_of_all_files_are_reported(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_text(path.read_text().replace("backoffLimit: 3", "backoffLimit: 6").replace("Seconds: 30", "Seconds: 9"))
    other = folder / "task4b-job.yaml"
    other.write_text(other.read_text().replace("backoffLimit: 2", "backoffLimit: 0"))
    (folder / "report-job.yaml").unlink()
    lines = differences(folder, Settings())
    names = ["task2-job.yaml", "task2-job.yaml", "task4b-job.yaml", "report-job.yaml"]
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == names


def test_other_settings_are_a_difference(folder: Path) -> None:
    lines = differences(folder, Settings(image="cnn-jobs:9.9.9"))
    assert len(lines) == 2 * len(DOCUMENTS)
    assert all("cnn-jobs:9.9.9', found '" in line for line in lines)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such folder; .*--out"):
        differences(tmp_path / "none", Settings())


def test_an_unreadable_file_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CnnJobsError, match=r"job.yaml: cannot be read \(Permission denied\)"):
        differences(folder, Settings())
