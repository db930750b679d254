"""What came of a command, left at a Pushgateway: a process that is over cannot be asked.

Only the outcome, by task: the Pushgateway never forgets a series, so nothing of one run or pod goes there
(https://prometheus.io/docs/practices/pushing/).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote, urlsplit, urlunsplit

from cnn_jobs.monitoring.secrets import redact

JOB = "cnn-jobs"
# A Pushgateway answers in milliseconds or is not worth waiting for.
TIMEOUT_S, TIMEOUT_AFTER_SIGNAL_S = 3.0, 1.0


def push_outcome(
    url: str, task: str, exit_code: int, seconds: float, warn: Callable[[str], object], *, hurry: bool = False
) -> bool:
    """Leaves exit code, duration and time of the command with the Pushgateway at ``url``; whether it took them.

    One that is away costs ``TIMEOUT_S`` seconds and a warning at most; nothing else changes.
    """
    trouble = ["it did not answer in time"]
    thread = threading.Thread(
        target=_push, args=(url, task, exit_code, seconds, trouble), name="pushgateway", daemon=True
    )
    thread.start()
    thread.join(TIMEOUT_AFTER_SIGNAL_S if hurry else TIMEOUT_S)
    found = list(trouble)
    if found:
        warn(redact(f"the outcome could not be left at the Pushgateway {url}: {found[-1]}; check --pushgateway"))
    return not found


def _with_login(url: str) -> tuple[str, Callable[..., Callable[[], None]]]:
    """The address without a user's name and password, and a handler that sends them as HTTP asks for."""
    from prometheus_client.exposition import basic_auth_handler, default_handler

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.username is None:
        return url, default_handler
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return address, partial(
        basic_auth_handler, username=unquote(parts.username), password=unquote(parts.password or "")
    )


def _push(url: str, task: str, exit_code: int, seconds: float, trouble: list[str]) -> None:
    from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

    registry, now = CollectorRegistry(), time.time()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(name, text, registry=registry).set(value)

    gauge("cnn_jobs_last_completion_timestamp_seconds", "When the task's last command ended, well or not.", now)
    gauge("cnn_jobs_last_exit_code", "Exit code of the task's last command.", exit_code)
    gauge("cnn_jobs_last_duration_seconds", "How long the task's last command took.", seconds)
    if exit_code == 0:
        # The one of an earlier success stays where this one failed: the push adds, it does not replace the group.
        gauge("cnn_jobs_last_success_timestamp_seconds", "When the task's last successful command ended.", now)
    try:
        address, handler = _with_login(url)
        key = {"task": task}
        pushadd_to_gateway(address, job=JOB, registry=registry, grouping_key=key, timeout=TIMEOUT_S, handler=handler)
    except Exception as error:  # whatever a URL, a name server or a proxy can come up with
        trouble.append(str(error) or type(error).__name__)
    else:
        trouble.clear()
