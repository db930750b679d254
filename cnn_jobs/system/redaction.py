"""Texts that are safe to show: without secrets, and without characters that control a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

STARS = "***"
# Shorter values occur in ordinary words by chance.
SHORTEST = 6
_SECRET_NAME = re.compile(r"SECRET|PASSW|TOKEN|CREDENTIAL|AUTHORIZATION|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
# Variables that name the place of a secret.
_PLACE_NAME = re.compile(r"_(FILE|PATH|DIR|URI|URL|ENDPOINT)$", re.IGNORECASE)
_KEY = r"[\w.-]*(?:secret|passw(?:or)?d|token|api_?key|access_?key|private_?key|x-amz-signature)[\w-]*"
# What follows a colon in http://host:80/@x, and is no password.
_PORT = r"\d{1,5}/"
_RULES = (
    # https://user:password@host, up to the last @: a password may hold any character.
    (re.compile(rf"(\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*):(?!{_PORT})[^\s'\"]*@", re.IGNORECASE), rf"\1:{STARS}@"),
    # Ids of AWS keys: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), STARS),
    (re.compile(r"(\bauthorization['\"]?\s*[=:]\s*['\"]?)(?:\w+[ ]+)?[^\s'\",;*]+", re.IGNORECASE), rf"\1{STARS}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9+/._~-]{8,}=*", re.IGNORECASE), rf"\1 {STARS}"),
    # password=..., "secret_key": "...", --token=..., ?X-Amz-Signature=...
    (re.compile(rf"(\b{_KEY}['\"]?\s*[=:]\s*['\"]?)(?!\*\*\*)[^\s'\"&,;)}}]+", re.IGNORECASE), rf"\1{STARS}"),
)


# All but newline, tab and carriage return; and those that change the direction of a text.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_UNPRINTABLE = re.compile(rf"\x1b|{_CONTROL}")
_UNPRINTABLE_BESIDE_COLOURS = re.compile(rf"\x1b(?!\[[0-9;?]*[A-Za-z])|{_CONTROL}")


def printable(text: str, *, colours: bool = False) -> str:
    """``text`` without control characters: those in the name of a run could rename a terminal's window, or hide what
    follows. ``colours``: keeps the escape sequences of colours and of the cursor."""
    return (_UNPRINTABLE_BESIDE_COLOURS if colours else _UNPRINTABLE).sub("", text)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """``text`` with stars for passwords in URLs, AWS keys, tokens, values named as secrets, and the values of
    environment variables with such a name."""
    for name, value in environment.items():
        if len(value) >= SHORTEST and value in text and _SECRET_NAME.search(name) and not _PLACE_NAME.search(name):
            text = text.replace(value, STARS)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_all(content: Any) -> Any:
    """JSON-ready ``content`` with every text redacted."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, Mapping):
        return {name: redact_all(value) for name, value in content.items()}
    return [redact_all(each) for each in content] if isinstance(content, list | tuple) else content


def without_password(uri: str) -> str:
    """``uri`` with stars for the password, of any characters; ``redact`` finds a URI in a text."""
    scheme, separator, rest = uri.partition("://")
    user_info, at, host = rest.rpartition("@")
    user, colon, password = user_info.partition(":")
    if not (separator and at and colon) or re.match(_PORT, password):
        return uri
    return f"{scheme}://{user}:{STARS}@{host}"
