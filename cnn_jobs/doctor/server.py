"""An MLflow server: whether it answers, under this name, in a compatible version, with its database and its clock."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import Finding, failed, ok, skipped, warning
from cnn_jobs.doctor.machine import lowest_version
from cnn_jobs.system.environment import version_of

if TYPE_CHECKING:
    from cnn_jobs.tracking.probe import Answer

LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
REFUSED_HOST = "invalid host header"
# A wrong clock makes the times of runs wrong; from 5 minutes on tokens are refused, from 15 S3's signatures.
CLOCK_WARNING_S, CLOCK_FAILED_S = 5.0, 300.0


class UnreachableError(Exception):
    """No answer at all: ``found`` is the reason, ``advice`` what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found, self.advice = found, advice


@dataclass(frozen=True)
class Contact:
    """The answers of a server at ``uri`` (http or https) to /health, /version and a search of experiments.

    ``version`` and ``search`` may lack an answer: their ``status`` is 0 then, and ``text`` is the reason.
    """

    uri: str
    health: Answer
    version: Answer
    search: Answer

    @property
    def refuses_host(self) -> bool:
        """Whether MLflow's security middleware rejects the host name of ``uri``."""
        return self.search.status == 403 and REFUSED_HOST in self.search.text.lower()

    @property
    def refuses_login(self) -> bool:
        """Whether it requires another login."""
        return self.search.status in (401, 403) and not self.refuses_host

    @property
    def server_version(self) -> str:
        """Version that the server reports, "" if it reports none."""
        text = self.version.text.strip()
        return text if self.version.status == 200 and re.fullmatch(r"\d+\.\d+[\w.+-]*", text) else ""

    @property
    def is_mlflow(self) -> bool:
        """Whether at least one of the answers is from MLflow."""
        # If its workers hang or fail, only /health answers.
        no_search = self.search.status == 0 or self.search.status >= 500
        healthy = self.health.status == 200 and self.health.text.strip() == "OK"
        return self.refuses_host or self.searches or (healthy and (bool(self.server_version) or no_search))

    @property
    def searches(self) -> bool:
        """Whether the search got an answer of MLflow's API, which may be an error."""
        try:
            content = json.loads(self.search.text)
        except ValueError:
            return False
        # MLflow omits empty lists: a new server answers just {}.
        return isinstance(content, dict) and (self.search.status == 200 or "error_code" in content)


def get_contact(uri: str) -> Contact:
    """Asks the server at ``uri``. Raises ``UnreachableError`` if it does not answer."""
    health = _ask(uri, "GET", "/health")
    # /health needs neither a worker nor the database: a server may answer it and nothing else.
    version = _ask_or_reason(uri, "GET", "/version")
    search = _ask_or_reason(uri, "POST", "/api/2.0/mlflow/experiments/search", json={"max_results": 1})
    return Contact(uri, health, version, search)


def _ask(uri: str, method: str, endpoint: str, **arguments: Any) -> Answer:
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    from cnn_jobs.tracking import probe

    try:
        return probe.ask(uri, method, endpoint, connect_s=network.CONNECT_S, answer_s=network.ANSWER_S, **arguments)
    except (RequestException, HTTPError, OSError, UnicodeError) as error:
        raise UnreachableError(*network.diagnose(error, uri)) from error


def _ask_or_reason(uri: str, method: str, endpoint: str, **arguments: Any) -> Answer:
    from cnn_jobs.tracking.probe import Answer

    try:
        return _ask(uri, method, endpoint, **arguments)
    except UnreachableError as error:
        return Answer(0, error.found)


def check_answers(contact: Contact) -> Finding:
    """The server answers, is an MLflow server, and accepts this user."""
    where = network.shown(contact.uri)
    if contact.refuses_login:
        text = contact.search.text[:150]
        if contact.search.status == 401:
            return failed(f"{where} requires a login (401: {text})", LOGIN)
        return failed(f"{where} does not admit this user (403: {text})", f"{LOGIN}; or ask for the permission")
    if not contact.is_mlflow:
        return failed(
            f"{where} answers, but is no MLflow (/health: {_short(contact.health)})",
            "check host, port and path of MLFLOW_TRACKING_URI: the path is the part before /api",
        )
    return ok(f"{contact.uri} in {contact.health.milliseconds:.0f} ms")


def check_host(contact: Contact) -> Finding:
    """MLflow accepts the host name of the address; /health accepts any."""
    if contact.refuses_host:
        host = network.address(contact.uri)[0]
        return failed(
            f"the server rejects the host name '{network.shown(contact.uri)}' (403, Invalid Host header)",
            f"start it with --allowed-hosts '{host},{host}:*' and with every other name that clients use "
            "(localhost, localhost:*): the list replaces MLflow's own; or set MLFLOW_SERVER_ALLOWED_HOSTS to that list",
        )
    if not contact.search.status or not contact.is_mlflow:
        return skipped("MLflow does not answer a search")
    return ok(f"accepted as '{network.shown(contact.uri)}'")


def check_version(contact: Contact) -> Finding:
    """The server has the client's major version, and is not older than the package allows."""
    from packaging.version import Version

    client, found = version_of("mlflow"), contact.server_version
    if not contact.is_mlflow:
        return skipped("no MLflow answers")
    if not found:
        return warning(
            f"the server does not report its version (/version: {_short(contact.version)})",
            f"make sure that it is MLflow {client}, and that a proxy before it forwards /version",
        )
    server, lowest = Version(found), lowest_version("mlflow")
    if server.major == Version(client).major and (lowest is None or server >= lowest):
        return ok(f"server {found}, client {client}")
    rule = f"server {found}, client {client}: it must be of the same major version and at least {lowest or client}"
    if server > Version(client):
        # A database that a newer MLflow has upgraded cannot be downgraded.
        return failed(rule, f"use a cnn-jobs that supports mlflow {found}, or a server of MLflow {client}")
    return failed(rule, f"run the server with MLflow {client}, after 'mlflow db upgrade' of its database")


def check_database(contact: Contact) -> Finding:
    """The server answers a search: /health is "OK" without a database, too."""
    search = contact.search
    advice = "look at the server's log, and whether its database (PostgreSQL, sqlite file) runs and has room"
    if not search.status:
        return failed(f"/health answers, but a search of experiments does not: {search.text}", advice)
    if contact.refuses_host or contact.refuses_login or not contact.is_mlflow:
        return skipped("MLflow does not allow a search")
    if search.status != 200 or not contact.searches:
        return failed(f"/health answers, but a search of experiments fails: {_short(search)}", advice)
    return ok(f"a search of experiments takes {search.milliseconds:.0f} ms")


def check_clock(contact: Contact) -> Finding:
    """This machine's clock against the server's, which HTTP gives in whole seconds."""
    health = contact.health
    try:
        server = parsedate_to_datetime(health.date).timestamp() + 0.5
    except (TypeError, ValueError):
        return skipped("the server does not report its time")
    ahead = (health.sent_s + health.received_s) / 2 - server
    uncertainty = 0.5 + (health.received_s - health.sent_s) / 2
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's, to within {uncertainty:.1f} s"
    advice = "set the clocks by NTP (timedatectl set-ntp true), on the machine that is wrong"
    if abs(ahead) - uncertainty > CLOCK_FAILED_S:
        return failed(f"{found}: logins and S3 signatures are refused", advice)
    if abs(ahead) - uncertainty > CLOCK_WARNING_S:
        return warning(f"{found}: times of runs will be wrong", advice)
    return ok(f"agrees with the server's to within {max(1.0, abs(ahead) + uncertainty):.0f} s")


def _short(answer: Answer) -> str:
    """Status, type and beginning of an answer, without HTML tags; or why there is none."""
    if not answer.status:
        return answer.text
    text = re.sub(r"<[^>]*>", " ", answer.text[:500])
    return " ".join(f"{answer.status} {answer.content_type.partition(';')[0]} {text}".split())[:120]
