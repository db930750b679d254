"""An MLflow server: does it answer, by this name, in a version that fits, and with its database."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import Finding, failed, ok, skipped, warning

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.version import Version

    from cnn_jobs.tracking.probe import Answer


# A clock that is off makes a run's times wrong; at 5 minutes tokens, at 15 S3's signatures are refused.
CLOCK_WARNING_S, CLOCK_FAILED_S = 5.0, 300.0


def check_clock(contact: Contact) -> Finding:
    """This machine's clock against the server's; HTTP tells it in whole seconds."""
    health = contact.health
    try:
        server = parsedate_to_datetime(health.date).timestamp() + 0.5
    except (TypeError, ValueError):
        return skipped("the server does not tell its time")
    ahead = (health.sent_s + health.received_s) / 2 - server
    unsure = 0.5 + (health.received_s - health.sent_s) / 2
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's, to within {unsure:.1f} s"
    advice = "set the clocks by NTP (timedatectl set-ntp true), on the machine that is wrong"
    if abs(ahead) - unsure > CLOCK_FAILED_S:
        return failed(f"{found}: logins and S3 signatures are refused", advice)
    if abs(ahead) - unsure > CLOCK_WARNING_S:
        return warning(f"{found}: times of runs will be wrong", advice)
    return ok(f"agrees with the server's to within {max(1.0, abs(ahead) + unsure):.0f} s")


PACKAGE = "cnn-jobs"
# What a result depends on, named even when all is well.
SHOWN = ("torch", "torchvision", "mlflow", "numpy")


@dataclass(frozen=True)
class Range:
    """The versions that the package takes; ``lowest``: the least of them, ``None`` where there is no bound."""

    text: str
    lowest: Version | None


def requirement(name: str, package: str = PACKAGE) -> Range:
    """The versions of ``name`` that ``package`` declares; any where it is not installed or declares none."""
    from packaging.version import Version

    try:
        declared = _requirements(package)
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for each in declared:
        if each.name == name:
            bounds = [Version(part.version) for part in each.specifier if part.operator in (">=", "~=")]
            return Range(str(each.specifier), min(bounds, default=None))
    return Range("", None)


def check_versions(package: str = PACKAGE) -> Finding:
    """Every package in the range that ``package`` declares, and Python itself."""
    from packaging.specifiers import SpecifierSet

    try:
        declared, metadata = _requirements(package), importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return skipped(f"{package} is not installed, only its source is there: no ranges are declared")
    python = metadata["Requires-Python"] or ""
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        return failed(f"python is {platform.python_version()}, but must be {python}", "use another Python")
    wrong = {each: line for each in declared if (line := _wrong(each))}
    if wrong:
        needed = " ".join(f"'{each.name}{each.specifier}'" for each in wrong)
        return failed("; ".join(wrong.values()), f"pip install {needed}")
    there = [f"{name} {version}" for name in SHOWN if (version := installed(name))]
    versions = ", ".join([f"{package} {metadata['Version']}", f"python {platform.python_version()}", *there])
    return ok(f"{versions}; all {len(declared)} requirements are met")


def installed(name: str) -> str:
    """The version of a package, "" where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _requirements(package: str) -> list[Requirement]:
    """Without those of extras, and of other systems."""
    from packaging.requirements import Requirement

    declared = map(Requirement, importlib.metadata.requires(package) or [])
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]


def _wrong(required: Requirement) -> str:
    found = installed(required.name)
    if not found:
        return f"{required.name} is missing"
    if not required.specifier.contains(found, prereleases=True):
        return f"{required.name} {found} is not {required.specifier}"
    return ""


LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
REFUSED_HOST = "invalid host header"


class UnreachableError(Exception):
    """No answer at all: ``found`` says why, ``advice`` what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found, self.advice = found, advice


@dataclass(frozen=True)
class Contact:
    """What a server at ``uri`` (http or https) answers to /health, /version and a search of experiments, or why not."""

    uri: str
    health: Answer
    version: Answer | UnreachableError
    search: Answer | UnreachableError

    @property
    def refuses_host(self) -> bool:
        """Whether MLflow's security middleware does not take the name by which it is called."""
        return _status(self.search) == 403 and REFUSED_HOST in _text(self.search).lower()

    @property
    def refuses_login(self) -> bool:
        """Whether it wants another login."""
        return _status(self.search) in (401, 403) and not self.refuses_host

    @property
    def server_version(self) -> str:
        """As the server tells it, "" where it does not."""
        text = _text(self.version).strip()
        return text if _status(self.version) == 200 and re.fullmatch(r"\d+\.\d+[\w.+-]*", text) else ""

    @property
    def is_mlflow(self) -> bool:
        """Whether anything of what it says is what an MLflow says."""
        # Where its workers hang or fail, /health alone still answers.
        silent = _status(self.search) == 0 or _status(self.search) >= 500
        healthy = self.health.status == 200 and self.health.text.strip() == "OK"
        return self.refuses_host or _speaks_mlflow(self.search) or (healthy and (bool(self.server_version) or silent))


def get_contact(uri: str) -> Contact:
    """Asks the server at ``uri``. Raises ``UnreachableError`` where it does not answer."""
    health = _ask(uri, "GET", "/health")
    # It may answer this and nothing else: only /health waits for no worker and no database.
    version = _ask_or_why(uri, "GET", "/version")
    search = _ask_or_why(uri, "POST", "/api/2.0/mlflow/experiments/search", json={"max_results": 1})
    return Contact(uri, health, version, search)


def _ask_or_why(uri: str, method: str, endpoint: str, json: dict[str, int] | None = None) -> Answer | UnreachableError:
    try:
        return _ask(uri, method, endpoint, json)
    except UnreachableError as error:
        return error


def _ask(uri: str, method: str, endpoint: str, json: dict[str, int] | None = None) -> Answer:
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    from cnn_jobs.tracking import probe

    arguments = {} if json is None else {"json": json}
    try:
        return probe.ask(uri, method, endpoint, connect_s=network.CONNECT_S, answer_s=network.ANSWER_S, **arguments)
    except (RequestException, HTTPError, OSError, UnicodeError) as error:
        raise UnreachableError(*network.diagnose(error, uri)) from error


def _status(answer: Answer | UnreachableError) -> int:
    return 0 if isinstance(answer, UnreachableError) else answer.status


def _text(answer: Answer | UnreachableError) -> str:
    return answer.found if isinstance(answer, UnreachableError) else answer.text


def _speaks_mlflow(answer: Answer | UnreachableError) -> bool:
    try:
        content = json.loads(_text(answer))
    except ValueError:
        return False
    # MLflow leaves out an empty list: a new one says just {}.
    return isinstance(content, dict) and (_status(answer) == 200 or "error_code" in content)


def check_answers(contact: Contact) -> Finding:
    """Somebody answers, it is an MLflow, and it lets this user in."""
    where = network.shown(contact.uri)
    if contact.refuses_login:
        said = _text(contact.search)[:150]
        if _status(contact.search) == 401:
            return failed(f"{where} wants a login (401: {said})", LOGIN)
        return failed(f"{where} does not let this user in (403: {said})", f"{LOGIN}; or ask for the permission")
    if not contact.is_mlflow:
        return failed(
            f"{where} answers, but is no MLflow (/health: {_short(contact.health)})",
            "check host, port and path of MLFLOW_TRACKING_URI: the path is the part before /api",
        )
    took = 1000 * (contact.health.received_s - contact.health.sent_s)
    return ok(f"{contact.uri} in {took:.0f} ms")


def _short(answer: Answer | UnreachableError) -> str:
    if isinstance(answer, UnreachableError):
        return answer.found
    text = re.sub(r"<[^>]*>", " ", answer.text[:500])
    return " ".join(f"{answer.status} {answer.content_type.partition(';')[0]} {text}".split())[:120]


def check_host(contact: Contact) -> Finding:
    """MLflow takes the name by which it is called; /health it answers under any name."""
    host = urlsplit(contact.uri).hostname or ""
    if contact.refuses_host:
        return failed(
            f"the server refuses to be called '{network.shown(contact.uri)}' (403, Invalid Host header)",
            f"start it with --allowed-hosts '{host},{host}:*' and with every other name it is called by "
            "(localhost, localhost:*): the list replaces MLflow's own; or set MLFLOW_SERVER_ALLOWED_HOSTS to that list",
        )
    if isinstance(contact.search, UnreachableError) or not contact.is_mlflow:
        return skipped("MLflow does not answer a search")
    return ok(f"taken as '{network.shown(contact.uri)}'")


def check_version(contact: Contact) -> Finding:
    """Of the same major version as the client, and not older than the package allows."""
    from packaging.version import Version

    from cnn_jobs.tracking import probe

    client, found = probe.client_version(), contact.server_version
    if not contact.is_mlflow:
        return skipped("no MLflow answers")
    if not found:
        return warning(
            f"the server does not tell its version (/version: {_short(contact.version)})",
            f"make sure that it is MLflow {client}, and that what stands before it lets /version through",
        )
    server, lowest = Version(found), requirement("mlflow").lowest
    if server.major == Version(client).major and (lowest is None or server >= lowest):
        return ok(f"server {found}, client {client}")
    rule = f"server {found}, client {client}: it must be of the same major version and at least {lowest or client}"
    if server > Version(client):
        # A database that a newer MLflow has upgraded does not go back.
        return failed(rule, f"use a cnn-jobs that takes mlflow {found}, or a server of MLflow {client}")
    return failed(rule, f"run the server with MLflow {client}, after 'mlflow db upgrade' of its database")


def check_database(contact: Contact) -> Finding:
    """A search answers: /health alone would be "OK" without a database, too."""
    search = contact.search
    advice = "look at the server's log, and whether its database (PostgreSQL, sqlite file) runs and has room"
    if isinstance(search, UnreachableError):
        return failed(f"/health answers, but a search of experiments does not: {search.found}", advice)
    if contact.refuses_host or contact.refuses_login or not contact.is_mlflow:
        return skipped("MLflow lets no search through")
    if search.status != 200 or not _speaks_mlflow(search):
        return failed(f"/health answers, but a search of experiments fails: {_short(search)}", advice)
    return ok(f"a search of experiments takes {1000 * (search.received_s - search.sent_s):.0f} ms")
