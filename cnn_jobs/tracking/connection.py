"""Connections to MLflow: the client's settings, URIs, and its errors classified in one place."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cnn_jobs.errors import CnnJobsError, TrackingError, TrackingUriError, first_line
from cnn_jobs.system.environment import POD_TRACKING_URI, in_pod
from cnn_jobs.system.redaction import without_password

# MLflow's defaults (7 retries of up to 120 s) block for minutes. The user's settings win.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The uploader repeats calls itself, and a server's Retry-After must not put it to sleep for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Artifacts go through the server: a pod may reach nothing else.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # It would overwrite the training's own progress bar.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The command prints the run's page once, at the end.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Settings that change what a call means, or what is stored: here the user's do not count.
_PINNED_SETTINGS = {
    # Otherwise a call returns before the server has answered, and a refusal is lost.
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
    # The exported model states its own requirements; MLflow must neither resolve others nor store files of the
    # present folder.
    "MLFLOW_LOCK_MODEL_DEPENDENCIES": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_LOG_UV_FILES": "false",
}
_SERVER_SCHEMES = ("http", "https")
_DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
Result = TypeVar("Result")


# -- settings and URIs -----------------------------------------------------------------------------------------------


def configure_client() -> None:
    """Sets MLflow's environment variables: time limits and the like where the user has not, others always.

    Call it before MLflow is imported.
    """
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_PINNED_SETTINGS)


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``; else the stack's Service in a pod, elsewhere MLflow's own default, the database
    ``mlflow.db`` in the present folder."""
    default = POD_TRACKING_URI if in_pod() else f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def check_uri(uri: str) -> str:
    """``uri`` if MLflow can use it for tracking. Raises ``TrackingUriError`` (exit 2) with an example."""
    with contextlib.suppress(ValueError):  # "[" without "]", or a port that is not a number
        parts = urlsplit(uri)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        if parts.scheme.split("+")[0] in _DATABASE_SCHEMES or (parts.scheme in _SERVER_SCHEMES and has_host):
            return uri
    raise TrackingUriError(
        f"MLFLOW_TRACKING_URI is '{without_password(uri)}', but must look like http://host:5000 or "
        "sqlite:////absolute/path/mlflow.db"
    )


def is_server(uri: str) -> bool:
    """Whether it is an MLflow server and not a database."""
    return urlsplit(uri).scheme in _SERVER_SCHEMES


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """The run's page in the MLflow UI; for a database, which has none, the URI and the run's id."""
    shown = without_password(uri).rstrip("/")
    if is_server(uri):
        # Without the query a fresh browser shows the run as the evaluation of a language model.
        return f"{shown}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    return f"{shown} run {run_id}"


# -- errors ----------------------------------------------------------------------------------------------------------

# Kinds of failed calls: no answer at all; a status of 5xx or 408; of 429; an answer not of MLflow; a record refused for
# good; an answer of MLflow that contradicts an earlier one.
NO_ANSWER, SERVER_ERROR, THROTTLED, FOREIGN, REFUSED, UNCLEAR = UPLOAD_ERRORS = (
    "no_answer",
    "server_error",
    "throttled",
    "foreign",
    "refused",
    "unclear",
)


class OutageError(TrackingError):
    """No clear answer: the same call may work later, and may even have worked now. ``kind``: one of
    ``UPLOAD_ERRORS``."""

    def __init__(self, message: str, kind: str = UNCLEAR) -> None:
        super().__init__(message)
        self.kind = kind


class RefusalError(TrackingError):
    """MLflow understood the call and refuses it for good."""


def classify(error: Exception, uri: str) -> CnnJobsError | None:
    """The error of a failed call as ``RefusalError``, ``OutageError`` or ``TrackingUriError``; ``None`` for a bug."""
    if isinstance(error, TrackingError):
        return error
    if isinstance(error, ImportError):
        return TrackingUriError(
            f"MLFLOW_TRACKING_URI is '{without_password(uri)}', but its driver is missing ({error}); "
            "install it, or use a server, as in http://host:5000"
        )
    if is_refusal(error):
        return RefusalError(explain(error, uri))
    return OutageError(explain(error, uri), kind_of(error)) if is_transient(error) else None


def explain(error: Exception, uri: str) -> str:
    """One line for a failed call: who refused, with what answer, and what to do."""
    status, where = http_status(error), without_password(uri)
    hints = {
        401: "it requires a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        403: "the user lacks the permission, or the server's --allowed-hosts do not include this name",
        404: "this address has no MLflow API: check host, port and path",
    }
    if status in hints and getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
        return f"MLflow at {where} answered {status}: {hints[status]}"
    if status is not None and status >= 500:
        return f"MLflow at {where} failed ({status}): {first_line(error)}; see the server's log"
    if is_foreign(error):
        return f"{where} answered, but not as MLflow does ({first_line(error)}): check host, port and path"
    if status is None and is_transient(error):
        return f"MLflow at {where} does not answer; start it, or set MLFLOW_TRACKING_URI to one that runs"
    return f"MLflow at {where} refused: {first_line(error)}"


def kind_of(error: Exception) -> str:
    """One of ``UPLOAD_ERRORS``, for a failed call that may work later."""
    status = http_status(error)
    if status is None:
        return FOREIGN if is_foreign(error) else NO_ANSWER
    return THROTTLED if status == 429 else SERVER_ERROR


def http_status(error: Exception) -> int | None:
    """The HTTP status behind an error of MLflow or requests; ``None`` where there was no answer."""
    from mlflow.exceptions import MlflowException

    response = getattr(error, "response", None)  # a requests.HTTPError of the artifact client
    if response is not None:
        return int(response.status_code)
    if not isinstance(error, MlflowException):
        return None
    # MLflow reports a call without an answer with the code of a 500; only the text distinguishes them.
    if is_foreign(error):
        return None
    if re.search(r"failed with (timeout )?exception", str(error)):
        repeated = re.search(r"too many (\d{3}) error responses", str(error))
        return int(repeated[1]) if repeated else None
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def is_foreign(error: Exception) -> bool:
    """Whether the answer was JSON of another kind of server; MLflow does not pass on its status."""
    from mlflow.exceptions import RestException

    return isinstance(error, RestException) and "error_code" not in error.json


def is_transient(error: Exception) -> bool:
    """Whether the same call may work later: no answer, half of one, one not of MLflow, 408, 429 or 5xx."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    status = http_status(error)
    if status is None:
        unclear = (MlflowException, RequestException, HTTPError, ConnectionError, TimeoutError, JSONDecodeError)
        return isinstance(error, unclear)
    return status in (408, 429) or status >= 500


def is_refusal(error: Exception) -> bool:
    """Whether the server refused for good: any 4xx but 408 and 429."""
    status = http_status(error)
    return status is not None and not is_transient(error)


# -- waiting ---------------------------------------------------------------------------------------------------------


class Backoff:
    """Pauses between tries, doubled from ``first_s`` up to ``longest_s``, with jitter so that pods that share an outage
    do not return in step."""

    def __init__(self, first_s: float = 0.5, longest_s: float = 30.0) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self.pause_s = first_s  # the next pause at most

    def next(self) -> float:
        """Seconds to pause now."""
        pause, self.pause_s = self.pause_s, min(2 * self.pause_s, self._longest_s)
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begins again with the first pause."""
        self.pause_s = self._first_s


def call_within(timeout_s: float, call: Callable[[], Result]) -> Result:
    """Returns what ``call`` returns; repeats it over an outage for at most ``timeout_s`` seconds.

    Raises ``OutageError`` when the time is up, and whatever else ``call`` raises. A call that hangs does not hold up
    the caller: its thread is abandoned.
    """
    answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    end, backoff = time.monotonic() + timeout_s, Backoff(0.2, 10.0)

    def repeat() -> None:
        while True:
            try:
                answers.put((call(), None))
                return
            except OutageError as outage:
                if time.monotonic() + backoff.pause_s > end:
                    answers.put((None, outage))
                    return
                time.sleep(backoff.next())
            except BaseException as error:  # raised again in the caller's thread
                answers.put((None, error))
                return

    threading.Thread(target=repeat, name="mlflow-look-up", daemon=True).start()
    try:
        result, error = answers.get(timeout=timeout_s + 0.5)
    except queue.Empty:
        raise OutageError(f"MLflow gave no answer within {timeout_s:.0f} s", NO_ANSWER) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
