"""The list of checks, and who waits for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnn_jobs.doctor import artifacts, data, database, machine, server
from cnn_jobs.doctor import artifacts as object_store
from cnn_jobs.doctor import server as clock
from cnn_jobs.doctor.finding import OK, Finding, NoAnswerError, Shared, failed, from_error, ok, skipped
from cnn_jobs.doctor.machine import check_disk, import_all
from cnn_jobs.doctor.server import check_versions
from cnn_jobs.errors import CnnJobsError, TrackingUriError
from cnn_jobs.tasks import get_task

Check = Callable[[], Finding]


def run(checks: Sequence[tuple[str, Check]], limit_s: float) -> list[Finding]:
    """What each check of that name found, in their order; one that takes longer than ``limit_s`` has failed.

    The threads do not hold up the process's exit.
    """
    found: dict[str, Finding] = {}

    def call(name: str, check: Check) -> None:
        found[name] = _guarded(check)

    threads = [threading.Thread(target=call, args=each, name=each[0], daemon=True) for each in checks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = failed(
        f"no answer within {limit_s:.0f} s", "what it looks at hangs or is slow: a disk, a network or a server"
    )
    return [found.get(name, late).of(name) for name, _ in checks]


def _guarded(check: Check) -> Finding:
    """The check's finding; an error that it did not expect is one, too."""
    try:
        return check()
    except CnnJobsError as error:
        return from_error(error, "see 'cnn-jobs doctor --help'")
    except ImportError as error:
        return failed(f"a package is missing or broken ({error})", "see the check 'versions', and install it again")
    except Exception as error:
        return failed(
            f"{type(error).__name__}: {error} ({_place(error)})",
            "this check itself has failed: please report this line",
        )


def _place(error: Exception) -> str:
    """File and line that raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}" if trace else "nowhere"


# Imports, then checks: with the start of Python less than 30 s together.
IMPORT_LIMIT_S = 10.0
CHECK_LIMIT_S = 15.0
# For a check that waits for an answer that others wait for, too: it can still say so.
SHARED_LIMIT_S = 13.0
NO_MLFLOW = "MLflow does not answer"

Checks = list[tuple[str, Check]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined, as training would take it. ``task`` may be "", and ``weights``, too: the task's then."""

    data: str
    task: str
    weights: str
    tracking_uri: str
    experiment: str
    state_dir: Path
    device: str
    threads: int


def examine(subject: Subject) -> list[Finding]:
    """What every check found, in the order in which they are shown, within about 25 s."""
    imports = threading.Thread(target=import_all, daemon=True)
    imports.start()
    imports.join(IMPORT_LIMIT_S)
    return run([*_of_data(subject), *_of_mlflow(subject), *_of_machine(subject)], CHECK_LIMIT_S)


def _of_data(subject: Subject) -> Checks:
    task = get_task(subject.task) if subject.task else None
    weights = subject.weights or (task.recipe.weights if task else "")
    stored = {uri: Shared(_look(uri)) for uri in (subject.data, weights) if uri.startswith(data.SCHEME)}

    def look(uri: str) -> object_store.Looked | None:
        try:
            return stored[uri].get(SHARED_LIMIT_S) if uri in stored else None
        except NoAnswerError as error:
            return object_store.Looked(failed(f"{uri}: {error}", f"check {object_store.ENDPOINT} and the network"))

    def check_weights() -> Finding:
        if task and weights:
            task.check(replace(task.recipe, weights=weights))
        return data.check_weights(weights, look(weights))

    def check_s3() -> Finding:
        found = [each.finding for each in map(look, stored) if each is not None]
        if not found:
            return skipped("neither data nor weights are on s3://")
        bad = [each for each in found if each.status != OK]
        return bad[0] if bad else ok("; ".join(each.found for each in found))

    return [
        ("data", lambda: data.check_data(subject.data, look(subject.data))),
        ("weights", check_weights),
        ("S3", check_s3),
    ]


def _look(uri: str) -> Callable[[], object_store.Looked]:
    return lambda: object_store.look(uri)


def _of_mlflow(subject: Subject) -> Checks:
    from cnn_jobs.tracking.connection import check_uri

    uri = subject.tracking_uri
    try:
        check_uri(uri)
    except TrackingUriError as error:
        wrong = from_error(error, "set MLFLOW_TRACKING_URI to an address of that form")
        return [("MLflow answers", lambda: wrong), *_skipped("MLFLOW_TRACKING_URI is not an address")]
    return _of_server(subject) if uri.startswith("http") else _of_database(subject)


def _skipped(why: str) -> Checks:
    names = (
        "MLflow host name",
        "MLflow version",
        "MLflow database",
        "MLflow artifacts",
        "presigned downloads",
        "clock",
    )
    return [(name, lambda: skipped(why)) for name in names]


def _of_server(subject: Subject) -> Checks:
    uri = subject.tracking_uri
    contact = Shared(lambda: server.get_contact(uri))
    exchange = Shared(lambda: artifacts.exchange(uri, subject.experiment))

    def answers() -> Finding:
        try:
            return server.check_answers(contact.get(SHARED_LIMIT_S))
        except NoAnswerError as error:
            return failed(f"{uri}: {error}, not even a refusal", "check the name server (DNS), the network, the server")
        except server.UnreachableError as error:
            return failed(error.found, error.advice)

    def of_contact(check: Callable[[server.Contact], Finding]) -> Check:
        def checked() -> Finding:
            try:
                return check(contact.get(SHARED_LIMIT_S))
            except (NoAnswerError, server.UnreachableError):
                return skipped(NO_MLFLOW)

        return checked

    def of_exchange(check: Callable[[artifacts.Exchange], Finding]) -> Check:
        def checked(reached: server.Contact) -> Finding:
            if server.check_database(reached).status != OK:
                return skipped("MLflow answers no search")
            return check(exchange.get(SHARED_LIMIT_S))

        return of_contact(checked)

    return [
        ("MLflow answers", answers),
        ("MLflow host name", of_contact(server.check_host)),
        ("MLflow version", of_contact(server.check_version)),
        ("MLflow database", of_contact(server.check_database)),
        ("MLflow artifacts", of_exchange(lambda done: artifacts.check_artifacts(done, uri, subject.experiment))),
        ("presigned downloads", of_exchange(artifacts.check_presigned)),
        ("clock", of_contact(clock.check_clock)),
    ]


def _of_database(subject: Subject) -> Checks:
    uri = subject.tracking_uri
    opened = Shared(lambda: database.check_opens(uri))
    exchange = Shared(lambda: artifacts.exchange(uri, subject.experiment))

    def of_tables(check: Check) -> Check:
        def checked() -> Finding:
            if opened.get(SHARED_LIMIT_S).status != OK:
                return skipped("the database does not open")
            return check() if database.is_there(uri) else skipped("the database has no tables yet")

        return checked

    places = {
        "MLflow database": of_tables(lambda: database.check_search(uri)),
        "MLflow artifacts": of_tables(
            lambda: artifacts.check_artifacts(exchange.get(SHARED_LIMIT_S), uri, subject.experiment)
        ),
        "presigned downloads": lambda: skipped(database.NO_SERVER),
    }
    others = _skipped(database.NO_SERVER)
    return [
        ("MLflow answers", lambda: opened.get(SHARED_LIMIT_S)),
        *((name, places.get(name, check)) for name, check in others),
    ]


def _of_machine(subject: Subject) -> Checks:
    return [
        ("device", lambda: machine.check_device(subject.device)),
        ("threads", lambda: machine.check_threads(subject.threads)),
        ("shared memory", machine.check_shared_memory),
        ("disk", lambda: check_disk(subject.state_dir)),
        ("versions", check_versions),
    ]
