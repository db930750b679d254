"""Reasons why a server cannot be reached, from the errors below a library's error."""

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
    """Host and port of a URL; without a port, that of its scheme."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)


def is_loopback(url: str) -> bool:
    """Whether the host of a URL is this machine; what listens there may still forward to another."""
    host = address(url)[0]
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def shown(url: str) -> str:
    """``host:port`` of a URL, for messages."""
    host, port = address(url)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reach(url: str, limit_s: float = CONNECT_S) -> str:
    """Why no connection to the server of ``url``, or to its proxy, can be opened; "" if it can."""
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
    """Why a request to ``url`` got no answer, and what to do."""
    from urllib3 import exceptions as urllib3

    chain, where, host = list(_chain(error)), shown(url), address(url)[0]

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if has(urllib3.ProxyError):
        proxies = ", ".join(sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")))
        return (
            f"the proxy of {proxies or 'this machine'} does not lead to {where} ({_innermost(chain)})",
            f"if {host} is inside your network, add it to NO_PROXY; else correct the proxy's address",
        )
    if has(socket.gaierror, urllib3.NameResolutionError, UnicodeError):
        return (
            f"the name '{host}' cannot be resolved ({_innermost(chain)})",
            f"check the spelling of '{host}' and this machine's DNS; in a pod, a Service of another namespace is "
            "called NAME.NAMESPACE.svc",
        )
    for each in chain:
        if isinstance(each, ssl.SSLError):
            return _tls(each, where)
    if has(ConnectionRefusedError):
        return (
            f"{where} refuses the connection: nothing listens on that port",
            "start the server, or correct host and port",
        )
    if has(urllib3.ReadTimeoutError):
        return (
            f"{where} accepts connections, but sends no answer within {ANSWER_S:.0f} s",
            "look at the server's log: it hangs, is overloaded, or something else listens on that port",
        )
    system = next((each for each in chain if isinstance(each, OSError) and each.errno is not None), None)
    if system is None and has(TimeoutError, urllib3.ConnectTimeoutError):
        return (
            f"{where} does not accept a connection within {CONNECT_S:.0f} s",
            "a firewall or a NetworkPolicy drops the packets, or the machine is off: check both, and the address",
        )
    reset = system is not None and system.errno in (errno.ECONNRESET, errno.EPIPE)
    if reset or (system is None and has(urllib3.ProtocolError)):
        return (
            f"{where} closes the connection without an answer",
            "if it uses TLS, use https:// in place of http://; else look at the server's log",
        )
    reason = (system.strerror or system) if system is not None else _innermost(chain)
    return f"{where} cannot be reached ({reason})", "check the address and the network"


def _tls(error: ssl.SSLError, where: str) -> tuple[str, str]:
    why = getattr(error, "verify_message", "") or error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not trusted ({why})",
            "name the file of your own certificate authority by MLFLOW_TRACKING_SERVER_CERT_PATH, for S3 by "
            "AWS_CA_BUNDLE; or correct the certificate",
        )
    return f"{where} does not use TLS ({why})", "use http:// in place of https://, or correct the port"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and everything it was raised from: causes, urllib3's reasons, inner errors of botocore and requests."""
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


def _innermost(chain: list[BaseException]) -> str:
    """The text of the innermost error that has one."""
    texts = [getattr(each, "strerror", None) or str(each) for each in chain]
    return next((" ".join(text.split())[:200] for text in reversed(texts) if text.strip()), type(chain[0]).__name__)
