"""Whatever is changed in a file that is checked in, 'manifests check' finds it and says where."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.cluster.manifests import compare, differences, documents, text_of
from cnn_jobs.cluster.plans import all_plans
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.yaml_text import item_path, key_path, to_yaml
from cnn_jobs.errors import CnnJobsError, UserError
from tests.cluster.job_files import DOCUMENTS, FOLDER, OBJECTS, PATHS

PLANS = {plan.file: plan for plan in all_plans()}
Keys = tuple[Any, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files that are checked in."""
    for path in PATHS:
        shutil.copy(path, tmp_path)
    return tmp_path


def places(content: Any, path: str = "", keys: Keys = ()) -> Iterator[tuple[str, Keys, Any]]:
    """Every value of a document: its path as 'check' writes it, the keys that lead there, itself."""
    if keys:
        yield path, keys, content
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, key_path(path, key), (*keys, key))
    if isinstance(content, list):
        for index, value in enumerate(content):
            yield from places(value, item_path(path, index, value), (*keys, index))


def parent_of(document: Any, keys: Keys) -> Any:
    for key in keys[:-1]:
        document = document[key]
    return document


def changed(value: Any) -> list[Any]:
    """Other values: another one of the same type, and the same one of another type."""
    if isinstance(value, bool):
        return [not value, int(value), str(value).lower()]
    if isinstance(value, int):
        return [value + 1, str(value), float(value)]
    return [f"{value}x", ""]


class File:
    """One file, compared after a change."""

    def __init__(self, name: str, folder: Path) -> None:
        self.path, self.objects = folder / name, OBJECTS[name]
        self.text, self.expected = text_of(PLANS[name], Settings()), documents(PLANS[name], Settings())

    def places(self, *, whole: bool = False) -> Iterator[tuple[int, str, Keys, Any]]:
        """Every value of every object, with the object's number; with ``whole`` the objects themselves, too."""
        for number, content in enumerate(self.objects):
            start = f"[{number}]" if number else ""
            if whole:
                yield number, start, (), content
            yield from ((number, *place) for place in places(content, start))

    def lines_for(self, text: str) -> list[str]:
        self.path.write_text(text)
        return compare(self.path, self.text, self.expected)

    def lines_after(self, number: int, change: Callable[[Any], object]) -> list[str]:
        objects = copy.deepcopy(self.objects)
        change(objects[number])
        return self.lines_for("---\n".join(to_yaml(each, {}) for each in objects))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_value_that_is_changed_is_found(name: str, tmp_path: Path) -> None:
    file, checked = File(name, tmp_path), 0
    for number, path, keys, value in file.places():
        if isinstance(value, dict | list):
            continue
        for other in changed(value):
            (line,) = file.lines_after(
                number, lambda document, k=keys, o=other: parent_of(document, k).__setitem__(k[-1], o)
            )
            assert line.startswith(
                f"{file.path}: {path}: expected {value!r}, found {other!r}; 'cnn-jobs manifests render'"
            )
            checked += 1
    assert checked > 150


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_or_item_that_is_deleted_is_found(name: str, tmp_path: Path) -> None:
    file = File(name, tmp_path)
    for number, path, keys, _ in file.places():
        lines = file.lines_after(number, lambda document, k=keys: parent_of(document, k).pop(k[-1]))
        (line,) = lines
        if isinstance(keys[-1], str):
            assert f": {path}: expected " in line
            assert ", found nothing; " in line
        else:  # of a list: the list is told, as it should be
            assert f": {path[: path.rindex('[')]}: expected [" in line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_or_item_that_is_added_is_found(name: str, tmp_path: Path) -> None:
    file = File(name, tmp_path)
    for number, path, keys, value in file.places(whole=True):
        if isinstance(value, dict):
            (line,) = file.lines_after(number, lambda document, k=keys: parent_of(document, (*k, "")).update(added=1))
            assert f": {key_path(path, 'added')}: expected nothing, found 1; " in line
        elif isinstance(value, list):
            (line,) = file.lines_after(
                number,
                lambda document, k=keys: parent_of(document, (*k, "")).append(parent_of(document, (*k, ""))[0]),
            )
            assert f": {path}: expected [" in line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_line_that_is_deleted_is_found(name: str, tmp_path: Path) -> None:
    file = File(name, tmp_path)
    lines = file.text.splitlines(keepends=True)
    assert file.lines_for(file.text) == []
    for number, line in enumerate(lines):
        found = file.lines_for("".join([*lines[:number], *lines[number + 1 :]]))
        assert found, (number, line)
        assert all("\n" not in each for each in found)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_character_of_a_comment_counts(name: str, tmp_path: Path) -> None:
    file = File(name, tmp_path)
    lines = file.text.splitlines(keepends=True)
    comments = [number for number, line in enumerate(lines) if line.lstrip().startswith("# ")]
    assert len(comments) > 25
    for number in comments:
        changed_line = lines[number].replace("# ", "# no ", 1)
        (found,) = file.lines_for("".join([*lines[:number], changed_line, *lines[number + 1 :]]))
        assert f": line {number + 1}: the fields are the same, its text is not: expected " in found


def test_the_same_fields_in_another_form_are_found(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    text = path.read_text()
    for other in (
        text.replace("restartPolicy: Never", "restartPolicy: 'Never'"),
        text.replace("[2]", "[0x2]"),
        text.replace("\n", "\r\n"),
        text + "\n",
        text.rstrip("\n"),
        "\ufeff" + text,
        "---\n" + text,
        text.replace("  backoffLimit: 3\n", "  backoffLimit: 4\n  backoffLimit: 3\n"),
    ):
        path.write_bytes(other.encode())
        (line,) = differences(folder, Settings())
        assert line.startswith(f"{path}: line ")
        assert line.endswith("; 'cnn-jobs manifests render' writes it anew")
        assert "\n" not in line


def test_a_second_document_is_found(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    text = path.read_text()
    for other, count in ((f"{text}---\nkind: Secret\n", 2), ("", 0), ("# nothing\n", 0)):
        path.write_text(other)
        (line,) = differences(folder, Settings())
        assert line.startswith(f"{path}: holds {count} documents, expected 1; ")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"a: !!python/name:os.system", b"day: 2026-13-45\n", b"\0"])
def test_what_is_no_yaml_is_one_line(content: bytes, folder: Path) -> None:
    (folder / "task2-job.yaml").write_bytes(content)
    (line,) = differences(folder, Settings())
    assert line.startswith(f"{folder / 'task2-job.yaml'}: ")
    assert "\n" not in line


def test_what_is_no_mapping_is_one_line(folder: Path) -> None:
    (folder / "task2-job.yaml").write_text("- a\n")
    (line,) = differences(folder, Settings())
    assert ": the document: expected {'apiVersion'" in line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_file_that_is_missing_is_found(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (line,) = differences(folder, Settings())
    assert line.startswith(f"{folder / name}: missing, expected Job {name.removesuffix('-job.yaml')}; ")


def test_a_file_too_many_is_found_and_others_are_left_alone(folder: Path) -> None:
    (folder / "task9-job.yaml").write_text((folder / "task2-job.yaml").read_text())
    (folder / "kustomization.yaml").write_text("resources: []\n")
    (line,) = differences(folder, Settings())
    assert line == f"{folder / 'task9-job.yaml'}: no Job of the registry has this file; delete it"


def test_every_difference_is_told(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_text(path.read_text().replace("backoffLimit: 3", "backoffLimit: 6").replace("30", "60", 1))
    other = folder / "task4b-job.yaml"
    other.write_text(other.read_text().replace("backoffLimit: 2", "backoffLimit: 0"))
    (folder / "report-job.yaml").unlink()
    lines = differences(folder, Settings())
    names = ["task2-job.yaml", "task2-job.yaml", "task4b-job.yaml", "report-job.yaml"]
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == names


def test_other_settings_are_a_difference(folder: Path) -> None:
    lines = differences(folder, Settings(image="cnn-jobs:9.9.9"))
    assert len(lines) == 2 * len(DOCUMENTS)
    assert all(": expected 'cnn-jobs:9.9.9', found 'cnn-jobs:" in line for line in lines)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such folder; .*--out"):
        differences(tmp_path / "none", Settings())


def test_a_file_that_cannot_be_read_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CnnJobsError, match=r"job.yaml: cannot be read \(Permission denied\)"):
        differences(folder, Settings())


def test_the_files_that_are_checked_in_are_not_touched() -> None:
    assert [path.parent for path in PATHS] == [FOLDER] * len(DOCUMENTS)
