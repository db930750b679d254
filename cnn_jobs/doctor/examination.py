"""The examination: all checks of what a training needs, run at the same time, each with a time limit."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, Self, TypeVar

from cnn_jobs.data.s3 import SCHEME
from cnn_jobs.doctor import artifacts, data, database, machine, server
from cnn_jobs.doctor.finding import OK, Finding, SkippedError, failed, from_error, ok, skipped
from cnn_jobs.errors import CnnJobsError, TrackingUriError
from cnn_jobs.tasks import get_task

# Imported before the checks run; MLflow is imported by ``probe.prepare``.
PACKAGES = (
    "torchvision.datasets",
    "cnn_jobs.data.sources",
    "cnn_jobs.models.weights",
    "cnn_jobs.training.device",
    "boto3",
)
Check = Callable[[], Finding]
Result = TypeVar("Result")

# Imports, then checks: less than 30 s together, including the start of Python.
IMPORT_LIMIT_S = 10.0
CHECK_LIMIT_S = 15.0
# For an answer that several checks wait for: leaves them time to report that there is none.
SHARED_LIMIT_S = 13.0
HANGS = "what it looks at hangs or is slow: a disk, a network or a server"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The training to examine. ``task`` may be ""; ``weights``, too, for those of the task."""

    data: str
    task: str
    weights: str
    tracking_uri: str
    experiment: str
    state_dir: Path
    device: str
    threads: int


def examine(subject: Subject) -> list[Finding]:
    """The findings of all checks, in the order in which they are shown, within about 25 s."""
    with contextlib.suppress(NoAnswerError):
        BackgroundCall(_import_packages).result(IMPORT_LIMIT_S)
    return run({**data_checks(subject), **mlflow_checks(subject), **_machine_checks(subject)}, CHECK_LIMIT_S)


def run(checks: Mapping[str, Check], limit_s: float) -> list[Finding]:
    """Runs all checks at the same time; one that takes longer than ``limit_s`` has failed. Keeps their order."""
    calls = {name: BackgroundCall(partial(_finding_of, check)).start() for name, check in checks.items()}
    deadline = time.monotonic() + limit_s
    findings = []
    for name, call in calls.items():
        try:
            finding = call.result(max(0.0, deadline - time.monotonic()))
        except NoAnswerError:
            finding = failed(f"no answer within {limit_s:.0f} s", HANGS)
        findings.append(finding.of(name))
    return findings


def data_checks(subject: Subject) -> dict[str, Check]:
    """Checks of the data set, the pretrained weights, and S3 where one of them is there."""
    task = get_task(subject.task) if subject.task else None
    weights = subject.weights or (task.recipe.weights if task else "")
    uris = [uri for uri in (subject.data, weights) if uri.startswith(SCHEME)]
    calls = {uri: BackgroundCall(partial(data.look_up, uri)) for uri in uris}

    def stored(uri: str) -> data.StoredObject | None:
        try:
            return calls[uri].result(SHARED_LIMIT_S) if uri in calls else None
        except NoAnswerError as error:
            finding = failed(f"{uri}: {error}", f"check {data.ENDPOINT} and the network")
            return data.StoredObject(finding)

    def check_weights() -> Finding:
        if task and weights:
            task.check(replace(task.recipe, weights=weights))
        return data.check_weights(weights, stored(weights))

    def check_s3() -> Finding:
        found = [each.finding for each in map(stored, calls) if each is not None]
        if not found:
            return skipped("neither data nor weights are on s3://")
        bad = [each for each in found if each.status != OK]
        return bad[0] if bad else ok("; ".join(each.found for each in found))

    return {
        "data": lambda: data.check_data(subject.data, stored(subject.data)),
        "weights": check_weights,
        "S3": check_s3,
    }


def mlflow_checks(subject: Subject) -> dict[str, Check]:
    """Checks of the MLflow server or database."""
    from cnn_jobs.tracking.connection import check_uri

    try:
        check_uri(subject.tracking_uri)
    except TrackingUriError as error:
        invalid = from_error(error, "set MLFLOW_TRACKING_URI to an address of that form")
        return {**_skip_mlflow("MLFLOW_TRACKING_URI is not an address"), "MLflow answers": lambda: invalid}
    return _server_checks(subject) if subject.tracking_uri.startswith("http") else _database_checks(subject)


def _skip_mlflow(why: str) -> dict[str, Check]:
    names = ("MLflow answers", "MLflow host name", "MLflow version", "MLflow database", "MLflow artifacts")
    return dict.fromkeys((*names, "presigned downloads", "clock"), lambda: skipped(why))


def _server_checks(subject: Subject) -> dict[str, Check]:
    uri = subject.tracking_uri
    contact = BackgroundCall(partial(server.get_contact, uri))
    exchange = BackgroundCall(partial(artifacts.exchange, uri, subject.experiment))

    def check_answers() -> Finding:
        try:
            return server.check_answers(contact.result(SHARED_LIMIT_S))
        except NoAnswerError as error:
            return failed(f"{uri}: {error}, not even a refusal", "check the name server (DNS), the network, the server")
        except server.UnreachableError as error:
            return failed(error.found, error.advice)

    def reached() -> server.Contact:
        try:
            return contact.result(SHARED_LIMIT_S)
        except (NoAnswerError, server.UnreachableError):
            raise SkippedError("MLflow does not answer") from None

    def exchanged() -> artifacts.Exchange:
        if server.check_database(reached()).status != OK:
            raise SkippedError("MLflow answers no search")
        return exchange.result(SHARED_LIMIT_S)

    return {
        "MLflow answers": check_answers,
        "MLflow host name": lambda: server.check_host(reached()),
        "MLflow version": lambda: server.check_version(reached()),
        "MLflow database": lambda: server.check_database(reached()),
        "MLflow artifacts": lambda: artifacts.check_artifacts(exchanged(), uri, subject.experiment),
        "presigned downloads": lambda: artifacts.check_presigned(exchanged()),
        "clock": lambda: server.check_clock(reached()),
    }


def _database_checks(subject: Subject) -> dict[str, Check]:
    uri = subject.tracking_uri
    opened = BackgroundCall(partial(database.check_opens, uri))

    def with_tables(check: Check) -> Check:
        def checked() -> Finding:
            if opened.result(SHARED_LIMIT_S).status != OK:
                return skipped("the database does not open")
            return check() if database.has_tables(uri) else skipped("the database has no tables yet")

        return checked

    def check_artifacts() -> Finding:
        return artifacts.check_artifacts(artifacts.exchange(uri, subject.experiment), uri, subject.experiment)

    return {
        **_skip_mlflow(database.NO_SERVER),
        "MLflow answers": lambda: opened.result(SHARED_LIMIT_S),
        "MLflow database": with_tables(partial(database.check_search, uri)),
        "MLflow artifacts": with_tables(check_artifacts),
    }


def _machine_checks(subject: Subject) -> dict[str, Check]:
    return {
        "device": lambda: machine.check_device(subject.device),
        "threads": lambda: machine.check_threads(subject.threads),
        "shared memory": machine.check_shared_memory,
        "disk": lambda: machine.check_disk(subject.state_dir),
        "versions": machine.check_versions,
    }


def _import_packages() -> None:
    """Before the checks, in one thread: threads that import the same package at once may see it half-initialised."""
    from cnn_jobs.tracking import probe

    for name in PACKAGES:
        with contextlib.suppress(Exception):  # reported by the checks that need it
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        probe.prepare()


def _finding_of(check: Check) -> Finding:
    """The check's finding; an unexpected error is a finding, too."""
    try:
        return check()
    except SkippedError as error:
        return skipped(str(error))
    except NoAnswerError as error:
        return failed(str(error), HANGS)
    except CnnJobsError as error:
        return from_error(error, "see 'cnn-jobs doctor --help'")
    except ImportError as error:
        return failed(f"a package is missing or broken ({error})", "see the check 'versions', and install it again")
    except Exception as error:
        raised = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error} ({Path(raised.filename).name}, line {raised.lineno})"
        return failed(found, "this check itself has failed: please report this line")


class NoAnswerError(Exception):
    """The result did not arrive in time."""


class BackgroundCall(Generic[Result]):
    """One call in a daemon thread, which does not delay the process's exit; all who wait for it share its result."""

    def __init__(self, function: Callable[[], Result]) -> None:
        """Starts with ``start``, or when the result is first needed."""
        self._future: Future[Result] = Future()
        self._thread = threading.Thread(target=self._call, args=(function,), daemon=True)
        self._starting = threading.Lock()

    def start(self) -> Self:
        """Starts the call, once."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        return self

    def result(self, limit_s: float) -> Result:
        """Waits for the result. Raises ``NoAnswerError`` after ``limit_s``, and the error of the call."""
        self.start()
        if not wait([self._future], limit_s).done:
            raise NoAnswerError(f"no answer within {limit_s:.0f} s")
        return self._future.result()

    def _call(self, function: Callable[[], Result]) -> None:
        try:
            self._future.set_result(function())
        except Exception as error:
            self._future.set_exception(error)
