"""MLflow without a server: a database on this machine or in the network."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cnn_jobs.doctor.finding import Finding, failed, ok, presentable
from cnn_jobs.system.environment import version_of

NO_SERVER = "MLFLOW_TRACKING_URI names a database, no server"
LOCK_S = 3.0


def check_opens(uri: str) -> Finding:
    """The database opens and has this MLflow's tables, or none yet. Creates nothing."""
    from sqlalchemy.exc import SQLAlchemyError

    from cnn_jobs.tracking import probe

    shown = presentable(uri)
    if uri.startswith("sqlite"):
        path = probe.database_file(uri)
        if path is None:
            return failed(
                f"{shown} is in memory: its runs end with the process", "name a file: sqlite:////path/mlflow.db"
            )
        if not path.exists():
            return _check_folder(path)
        if fault := _check_file(path):
            return fault
    try:
        found = probe.schema(uri)
    except ImportError as error:
        return failed(f"the driver of {shown} is missing ({error})", "install it, or name a server by http://host:5000")
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        return failed(f"{shown} cannot be opened ({reason})", "check the URI, and whether the database runs")
    mlflow = f"MLflow {version_of('mlflow')}"
    if found.tables == 0:
        return ok(f"{shown} is empty: the first run creates its tables")
    if found.found == found.expected:
        return ok(f"{shown}, tables as {mlflow} expects them")
    what = f"{shown} has tables of revision {found.found or 'none'}, {mlflow} expects {found.expected}"
    if found.found is None:
        return failed(f"{what}: not a database of MLflow", "name another database")
    if found.known:
        return failed(what, f"make a copy of it, then: mlflow db upgrade '{shown}'")
    return failed(f"{what}: a newer MLflow made them", "use that MLflow's cnn-jobs, or another database")


def check_search(uri: str) -> Finding:
    """A search of experiments, as in training; only for an existing database, since MLflow would create one."""
    from cnn_jobs.tracking import probe
    from cnn_jobs.tracking.connection import explain

    start = time.monotonic()
    try:
        probe.search(uri)
    except Exception as error:  # of the database's driver
        return failed(explain(error, uri), "check the database")
    return ok(f"a search of experiments takes {1000 * (time.monotonic() - start):.0f} ms")


def has_tables(uri: str) -> bool:
    """Whether the database has tables already; one that cannot be opened has none."""
    from cnn_jobs.tracking import probe

    try:
        path = probe.database_file(uri) if uri.startswith("sqlite") else None
        return (path is None or path.exists()) and probe.schema(uri).tables > 0
    except Exception:  # reported by ``check_opens``
        return False


def _check_folder(path: Path) -> Finding:
    """For a file that the first run creates; MLflow creates missing folders, too."""
    folder = next((each for each in path.absolute().parents if each.exists()), Path("/"))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return failed(f"{path} cannot be created: {folder} is not writable", "name a file in a folder that you own")
    return ok(f"{path} does not exist yet: the first run creates it")


def _check_file(path: Path) -> Finding | None:
    """Why sqlite cannot read and write the file; ``None`` if it can."""
    import sqlite3

    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=LOCK_S, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            # Only a write detects a read-only disk. user_version is for applications, and MLflow does not use it.
            number = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return failed(
                f"{path} is locked by another process for more than {LOCK_S:.0f} s ({error})",
                f"end the process that holds it (fuser -v '{path}'); for several writers run an MLflow server",
            )
        return failed(f"{path} cannot be opened for writing ({error})", "check its owner, its mode and the disk")
    except sqlite3.DatabaseError as error:
        return failed(f"{path} is damaged, or no database ({error})", "restore a copy of it, or name another file")
    return None
