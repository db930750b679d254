"""Why a server cannot be reached: told apart by the errors below an error."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_S = 3.0
ANSWER_S = 5.0
PORTS = {"http": 80, "https": 443}


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL; the port is its scheme's where it names none."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)


def is_this_machine(url: str) -> bool:
    """Whether the host of a URL is a loopback address. What listens there may still lead elsewhere."""
    host = address(url)[0]
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def shown(url: str) -> str:
    """``host:port`` of a URL, as people write it."""
    host, port = address(url)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reach(url: str, limit_s: float = CONNECT_S) -> str:
    """ "" where a connection to the server of ``url`` can be opened, by the proxy that the environment names for it,
    else why not."""
    host, port = address(url)
    proxy = getproxies().get(urlsplit(url).scheme, "")
    if proxy and not proxy_bypass(host):
        host, port = address(proxy)
    try:
        socket.create_connection((host, port), timeout=limit_s).close()
    except OSError as error:
        return diagnose(error, url)[0]
    return ""


def diagnose(error: BaseException, url: str) -> tuple[str, str]:
    """What kept a request to ``url`` from its answer, and what to do."""
    below, where, host = list(_below(error)), shown(url), address(url)[0]

    def is_one_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in below)

    from urllib3 import exceptions as urllib3

    if is_one_of(urllib3.ProxyError):
        proxies = ", ".join(sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")))
        return (
            f"the proxy of {proxies or 'this machine'} does not lead to {where} ({_last(below)})",
            f"if {host} is inside your network, add it to NO_PROXY; else correct the proxy's address",
        )
    if is_one_of(socket.gaierror, urllib3.NameResolutionError, UnicodeError):
        return (
            f"the name '{host}' cannot be resolved ({_last(below)})",
            f"check the spelling of '{host}' and this machine's DNS; in a pod, a Service of another namespace is "
            "called NAME.NAMESPACE.svc",
        )
    if is_one_of(ssl.SSLError):
        return _tls(below, where)
    if is_one_of(ConnectionRefusedError):
        return (
            f"{where} refuses the connection: nothing listens on that port",
            "start the server, or correct host and port",
        )
    return _silence(below, where)


def _tls(below: list[BaseException], where: str) -> tuple[str, str]:
    error = next(each for each in below if isinstance(each, ssl.SSLError))
    why = getattr(error, "verify_message", "") or error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not trusted ({why})",
            "name the file of your own certificate authority by MLFLOW_TRACKING_SERVER_CERT_PATH, for S3 by "
            "AWS_CA_BUNDLE; or correct the certificate",
        )
    return f"{where} does not speak TLS ({why})", "use http:// in place of https://, or correct the port"


def _silence(below: list[BaseException], where: str) -> tuple[str, str]:
    from urllib3 import exceptions as urllib3

    if any(isinstance(each, urllib3.ReadTimeoutError) for each in below):
        return (
            f"{where} accepts connections, but sends no answer within {ANSWER_S:.0f} s",
            "look at the server's log: it hangs, is overloaded, or something else listens on that port",
        )
    reasons = (each for each in below if isinstance(each, OSError) and each.errno is not None)
    reason = next(reasons, None)
    if reason is not None and reason.errno in (errno.ECONNRESET, errno.EPIPE):
        return _closed(where)
    if any(isinstance(each, TimeoutError | urllib3.ConnectTimeoutError) for each in below) and reason is None:
        return (
            f"{where} does not accept a connection within {CONNECT_S:.0f} s",
            "a firewall or a NetworkPolicy drops what goes there, or the machine is off: check both, and the address",
        )
    if reason is not None:
        return f"{where} cannot be reached ({reason.strerror or reason})", "check the address and the network"
    if any(isinstance(each, urllib3.ProtocolError) for each in below):
        return _closed(where)
    return f"{where} cannot be asked ({_last(below)})", "check the address and the network"


def _closed(where: str) -> tuple[str, str]:
    return (
        f"{where} closes the connection without an answer",
        "if it speaks TLS, use https:// in place of http://; else look at the server's log",
    )


def _below(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that it was made of: causes, urllib3's reasons, botocore's and requests' inner errors."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
        details = getattr(each, "kwargs", None)
        if isinstance(details, dict):
            inner.append(details.get("error"))
        waiting += [one for one in inner if isinstance(one, BaseException)]


def _last(below: list[BaseException]) -> str:
    """The words of the innermost error that has some."""
    texts = [getattr(each, "strerror", None) or str(each) for each in below]
    return next((" ".join(text.split())[:200] for text in reversed(texts) if text.strip()), type(below[0]).__name__)
