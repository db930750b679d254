from __future__ import annotations

import pytest

from cnn_jobs.doctor.finding import FAILED, OK, failed, from_error, ok, presentable
from cnn_jobs.errors import DataError


def test_a_projects_own_error_is_parted_into_what_is_and_what_to_do() -> None:
    finding = from_error(DataError("x.npz: sha256 12, expected 56; delete it and run 'cnn-jobs data prepare'"), "other")
    assert (finding.status, finding.found) == (FAILED, "x.npz: sha256 12, expected 56")
    assert finding.advice == "delete it and run 'cnn-jobs data prepare'"
    assert from_error(DataError("no form"), "use one").advice == "use one"


def test_a_finding_has_a_name_and_its_texts_are_single_lines() -> None:
    finding = failed("two\nlines", "and\n  more").of("disk")
    assert (finding.check, finding.found, finding.advice) == ("disk", "two lines", "and more")
    assert ok("fine").of("disk").status == OK


def test_no_secret_is_presented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    url = "http://me:hunter2@host:5000/x?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP/eu&X-Amz-Signature=abcdef123456"
    shown = presentable(f"request to {url} with the-secret-key")
    for secret in ("hunter2", "abcdef123456", "AKIAABCDEFGHIJKLMNOP", "the-secret-key"):
        assert secret not in shown
    assert "http://me:***@host:5000/x" in shown
