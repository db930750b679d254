from __future__ import annotations

import pytest

from cnn_jobs.doctor.finding import FAILED, OK, failed, from_error, ok, presentable
from cnn_jobs.errors import DataError


def test_an_error_message_is_split_into_facts_and_advice() -> None:
    finding = from_error(DataError("x.npz: sha256 12, expected 56; delete it and run 'cnn-jobs data prepare'"), "other")
    assert (finding.status, finding.found) == (FAILED, "x.npz: sha256 12, expected 56")
    assert finding.advice == "delete it and run 'cnn-jobs data prepare'"
    assert from_error(DataError("no form"), "use one").advice == "use one"


def test_a_named_finding_has_single_line_texts() -> None:
    finding = failed("two\nlines", "and\n  more").of("disk")
    assert (finding.check, finding.found, finding.advice) == ("disk", "two lines", "and more")
    assert ok("fine").of("disk").status == OK


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    url = "http://me:hunter2@host:5000/x?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP/eu&X-Amz-Signature=abcdef123456"
    shown = presentable(f"request to {url} with the-secret-key")
    for secret in ("hunter2", "abcdef123456", "AKIAABCDEFGHIJKLMNOP", "the-secret-key"):
        assert secret not in shown
    assert "http://me:***@host:5000/x" in shown
