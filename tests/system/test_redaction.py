from __future__ import annotations

import re
import string
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cnn_jobs.system.redaction import printable, redact, without_password

KEY_ID, KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
PASSWORDS = st.text(string.ascii_letters + string.digits + "!$%^&*()_+=~@#?.,;-/", min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hunter2@mlflow:5000/x", "http://ann:***@mlflow:5000/x"),
        ("postgresql+psycopg2://u:p@ss@db:5432/m failed", "postgresql+psycopg2://u:***@db:5432/m failed"),
        ("(http://u:secret@h/a, http://v:other@h/b)", "(http://u:***@h/a, http://v:***@h/b)"),
        ("http://u:pa/s@s?w@h:80/x", "http://u:***@h:80/x"),
        (f"id {KEY_ID} refused", "id *** refused"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: ***"),
        ("sent 'Basic dXNlcjpwYXNz' along", "sent 'Basic ***' along"),
        ("aws_secret_access_key=abc/def+g", "aws_secret_access_key=***"),
        ('{"password": "abc", "user": "ann"}', '{"password": "***", "user": "ann"}'),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=0af1&x=1", "https://b.s3.amazonaws.com/k?X-Amz-Signature=***&x=1"),
        ("--token=abc --run-key=k1", "--token=*** --run-key=k1"),
    ],
)  # fmt: skip
def test_a_secret_is_replaced_by_stars(text: str, shown: str) -> None:
    assert redact(text, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1/runs/0a1b",
        "https://registry.example:8443/@scope/package",
        "Continue it:\n  cnn-jobs train task2 --run-key 0a1b2c3d",
        "it requires a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        "step 20/300: train loss 1.2345, val loss 1.2, val accuracy 0.5",
        "Model signature: inputs (float32)",
        "s3://bucket/key of ann@example.org",
        "/tmp/state/0a1b/checkpoints/last.pt: 3 tokens, 2 secrets",
    ],
)
def test_a_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text, {}) == text


def test_values_of_secret_variables_are_redacted_and_others_are_not() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": KEY,
        "MLFLOW_TRACKING_PASSWORD": "hunter2hunter2",
        "CNN_JOBS_RUN_KEY": "run-of-monday",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/t",
        "DB_PASSWORD": "ab",
    }
    text = f"{KEY} hunter2hunter2 run-of-monday /var/run/secrets/t ab"
    assert redact(text, environment) == "*** *** run-of-monday /var/run/secrets/t ab"


@given(PASSWORDS, st.sampled_from(["http", "https", "postgresql", "redis"]))
def test_no_password_in_a_url_remains(password: str, scheme: str) -> None:
    assume(not re.match(r"\d{1,5}/", password))  # a port and a path
    redacted = redact(f"cannot reach {scheme}://user:{password}@host.example:5000/path now", {})
    assert redacted == f"cannot reach {scheme}://user:***@host.example:5000/path now"


@given(st.text(max_size=200))
def test_redaction_is_idempotent(text: str) -> None:
    once = redact(text, {})
    assert redact(once, {}) == once


def test_a_uri_is_shown_without_its_password() -> None:
    assert without_password("postgresql://me:se'cr\"et@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert without_password("http://me:pa/s@s@[x") == "http://me:***@[x"
    for uri in ("http://host:5000/a", "http://host:5000/@scope", "sqlite:////tmp/a@b:c.db", "/tmp/a:b@c"):
        assert without_password(uri) == uri


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert not [each for each in shown if unicodedata.category(each) == "Cc" and each not in "\n\t\r"]
    assert [each for each in text if each.isalnum()] == [each for each in shown if each.isalnum()]
    assert printable(shown) == shown


def test_colours_are_kept_where_a_terminal_shows_them() -> None:
    text = "\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1b[2K"
    assert printable(text, colours=True) == "\x1b[1;31mred\x1b[0m ]0;title\x1b[2K"
    assert printable(text) == "[1;31mred[0m ]0;title[2K"
