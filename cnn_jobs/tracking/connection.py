"""A client to MLflow with short waits, and its errors in this project's words."""

from __future__ import annotations

import os
import re
from json import JSONDecodeError
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from cnn_jobs.errors import TrackingUriError
from cnn_jobs.system.environment import POD_TRACKING_URI, in_pod

# MLflow's own defaults (7 retries of up to 120 s) block for minutes; a user's settings win.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The shipper repeats calls itself, and a server's Retry-After cannot put it to sleep for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Artifacts stay behind the server: a pod may reach nothing else.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # It would be drawn over the training's own.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The run's page is printed once, by the command, at the end.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_SERVER_SCHEMES = ("http", "https")
_DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


def configure_client() -> None:
    """Sets MLflow's environment, before it is imported, where the user has not."""
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``; else in a pod the Service of the stack, elsewhere the database in the present folder
    that MLflow itself would take."""
    default = POD_TRACKING_URI if in_pod() else f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def check_uri(uri: str) -> str:
    """``uri`` if it is one that MLflow can use for tracking.

    Raises ``TrackingUriError`` (exit 2) that says what one looks like.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    try:
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is no number
        usable = False
    if scheme in _DATABASE_SCHEMES or (scheme in _SERVER_SCHEMES and usable):
        return uri
    raise TrackingUriError(
        f"MLFLOW_TRACKING_URI is '{without_password(uri)}', but must look like http://host:5000 or "
        "sqlite:////absolute/path/mlflow.db"
    )


def without_password(uri: str) -> str:
    """``uri`` with a password replaced by stars, fit to be shown."""
    parts = urlsplit(uri)
    user_info, at, host = parts.netloc.rpartition("@")
    if ":" not in user_info:
        return uri
    return urlunsplit(parts._replace(netloc=f"{user_info.split(':')[0]}:***{at}{host}"))


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """The run's page in the MLflow UI; a database has none, there it is the URI and the run's id."""
    shown = without_password(uri).rstrip("/")
    if urlsplit(uri).scheme in _SERVER_SCHEMES:
        # Without the last part a fresh browser shows the run as an evaluation of a language model.
        return f"{shown}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    return f"{shown} run {run_id}"


def explain(error: Exception, uri: str) -> str:
    """One line for a failed call: who refused, with what, and what to do."""
    status, where = http_status(error), without_password(uri)
    hints = {
        401: "it wants a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        403: "the user may not, or the server was not started with --allowed-hosts for this name",
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


def first_line(error: Exception, limit: int = 300) -> str:
    """The first line of an error's text, cut to ``limit`` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


# What can go wrong with a call: no answer at all, an answer of 5xx or 408, of 429, one that is not MLflow's, a record
# refused for good, an answer of MLflow that does not fit what it said before.
NO_ANSWER, SERVER_ERROR, THROTTLED, FOREIGN, REFUSED, UNCLEAR = SHIP_ERRORS = (
    "no_answer",
    "server_error",
    "throttled",
    "foreign",
    "refused",
    "unclear",
)


def kind_of(error: Exception) -> str:
    """One of ``SHIP_ERRORS``, for a failed call that may work later."""
    status = http_status(error)
    if status is None:
        return FOREIGN if is_foreign(error) else NO_ANSWER
    return THROTTLED if status == 429 else SERVER_ERROR


def http_status(error: Exception) -> int | None:
    """The HTTP status behind an error of MLflow or requests; ``None`` where there was no answer."""
    from mlflow.exceptions import MlflowException

    response = getattr(error, "response", None)  # requests.HTTPError, from the artifact client
    if response is not None:
        return int(response.status_code)
    if not isinstance(error, MlflowException):
        return None
    # MLflow gives a call without an answer the same code as an answer of 500; only its words tell them apart.
    if is_foreign(error):
        return None
    if re.search(r"failed with (timeout )?exception", str(error)):
        repeated = re.search(r"too many (\d{3}) error responses", str(error))
        return int(repeated[1]) if repeated else None
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def is_foreign(error: Exception) -> bool:
    """Whether the answer was JSON of some other kind of server, whose status MLflow does not tell."""
    from mlflow.exceptions import RestException

    return isinstance(error, RestException) and "error_code" not in error.json


def is_transient(error: Exception) -> bool:
    """Whether the same call may work later: no answer, half an answer, one not of MLflow, 408, 429 or 5xx."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    status = http_status(error)
    if status is None:
        unclear = (MlflowException, RequestException, HTTPError, ConnectionError, TimeoutError, JSONDecodeError)
        return isinstance(error, unclear)
    return status in (408, 429) or status >= 500


def is_refusal(error: Exception) -> bool:
    """Whether the server said no for good: any 4xx but 408 and 429."""
    status = http_status(error)
    return status is not None and not is_transient(error)
