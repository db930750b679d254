from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cnn_jobs.doctor import database
from cnn_jobs.system.environment import version_of
from cnn_jobs.tracking import probe
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)


@pytest.fixture(autouse=True)
def _mlflow() -> None:
    probe.prepare()


@pytest.fixture
def file(mlflow_template_db: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(mlflow_template_db, tmp_path / "mlflow.db"))


def set_revision(file: Path, revision: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.commit()
    connection.close()


def test_a_database_of_this_mlflow_is_ok_and_unchanged(file: Path) -> None:
    before = file.read_bytes()
    uri = f"sqlite:///{file}"
    finding = database.check_opens(uri)
    assert finding.status == "ok"
    assert f"tables as MLflow {version_of('mlflow')} expects them" in finding.found
    assert database.has_tables(uri)
    assert database.check_search(uri).status == "ok"
    assert file.read_bytes() == before


def test_a_missing_database_is_not_created(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'deep' / 'new.db'}"
    finding = database.check_opens(uri)
    assert (finding.status, "does not exist yet: the first run creates it" in finding.found) == ("ok", True)
    assert not database.has_tables(uri)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    finding = database.check_opens(f"sqlite:///{tmp_path / 'empty.db'}")
    assert (finding.status, "is empty" in finding.found) == ("ok", True)
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_a_database_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    finding = database.check_opens(f"sqlite:///{tmp_path / 'file' / 'x.db'}")
    assert (finding.status, "cannot be created" in finding.found) == ("failed", True)


def test_a_damaged_file(file: Path) -> None:
    file.write_bytes(b"not a database, and long enough to be taken for one" * 100)
    finding = database.check_opens(f"sqlite:///{file}")
    assert finding.status == "failed"
    assert f"{file} is damaged, or no database (file is not a database)" in finding.found
    assert not database.has_tables(f"sqlite:///{file}")


def test_a_locked_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_S", 0.2)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        finding = database.check_opens(f"sqlite:///{file}")
    finally:
        holder.close()
    assert (finding.status, "is locked by another process" in finding.found) == ("failed", True)
    assert f"fuser -v '{file}'" in finding.advice


def test_a_read_only_file(file: Path, mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=8m")
    shutil.copy(file, disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    finding = database.check_opens(f"sqlite:///{disk / file.name}")
    assert (finding.status, "cannot be opened for writing" in finding.found) == ("failed", True)


def test_tables_of_an_older_mlflow(file: Path) -> None:
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    revisions = list(ScriptDirectory.from_config(utils._get_alembic_config("")).walk_revisions())
    set_revision(file, revisions[1].revision)
    finding = database.check_opens(f"sqlite:///{file}")
    assert finding.status == "failed"
    assert f"revision {revisions[1].revision}, MLflow {version_of('mlflow')} expects {revisions[0].revision}" in (
        finding.found
    )
    assert f"mlflow db upgrade 'sqlite:///{file}'" in finding.advice


def test_tables_of_a_newer_mlflow(file: Path) -> None:
    set_revision(file, "fedcba987654")
    finding = database.check_opens(f"sqlite:///{file}")
    assert (finding.status, "a newer MLflow made them" in finding.found) == ("failed", True)


def test_a_database_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("CREATE TABLE goods (name TEXT)")
    connection.close()
    finding = database.check_opens(f"sqlite:///{tmp_path / 'shop.db'}")
    assert (finding.status, "not a database of MLflow" in finding.found) == ("failed", True)


def test_a_database_in_memory() -> None:
    assert database.check_opens("sqlite://").status == "failed"


def test_a_missing_driver_and_no_password_shown() -> None:
    finding = database.check_opens("mssql+pymssql://user:secret@127.0.0.1/base")
    assert (finding.status, "the driver of" in finding.found) == ("failed", True)
    assert "secret" not in finding.found


def test_a_failing_search(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("DROP TABLE experiments")
    connection.commit()
    connection.close()
    set_revision(file, "fedcba987654")
    finding = database.check_search(f"sqlite:///{file}")
    assert finding.status == "failed"
