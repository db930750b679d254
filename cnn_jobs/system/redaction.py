"""Keeps secrets out of what is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

STARS = "***"
# Shorter values would turn up by chance in ordinary words.
SHORTEST = 6
_SECRET_NAME = re.compile(r"SECRET|PASSW|TOKEN|CREDENTIAL|AUTHORIZATION|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
# Names of places where secrets are, not of secrets.
_PLACE = re.compile(r"_(FILE|PATH|DIR|URI|URL|ENDPOINT)$", re.IGNORECASE)
_KEY = r"[\w.-]*(?:secret|passw(?:or)?d|token|api_?key|access_?key|private_?key|x-amz-signature)[\w-]*"
_RULES = (
    # https://user:password@host, also where the password holds an @.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*):[^\s/'\"]*@", re.IGNORECASE), rf"\1:{STARS}@"),
    # Ids of AWS keys: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), STARS),
    (re.compile(r"(\bauthorization['\"]?\s*[=:]\s*['\"]?)(?:\w+[ ]+)?[^\s'\",;*]+", re.IGNORECASE), rf"\1{STARS}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9+/._~-]{8,}=*", re.IGNORECASE), rf"\1 {STARS}"),
    # password=..., "secret_key": "...", --token=..., ?X-Amz-Signature=...
    (re.compile(rf"(\b{_KEY}['\"]?\s*[=:]\s*['\"]?)(?!\*\*\*)[^\s'\"&,;)}}]+", re.IGNORECASE), rf"\1{STARS}"),
)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """``text`` without passwords in URLs, AWS keys, tokens, what is named as a secret, and the values of environment
    variables with the name of one."""
    for name, value in environment.items():
        if len(value) >= SHORTEST and value in text and _SECRET_NAME.search(name) and not _PLACE.search(name):
            text = text.replace(value, STARS)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
