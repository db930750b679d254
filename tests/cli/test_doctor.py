"""``cnn-jobs doctor`` without its checks: options, imports, output."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cnn_jobs.cli.doctor import doctor, show
from cnn_jobs.cli.train import train
from cnn_jobs.doctor import examination
from cnn_jobs.doctor.finding import Finding, failed, ok, skipped, warning


@pytest.fixture(autouse=True)
def _restore_log_levels() -> Iterator[None]:
    """The command silences other packages for the rest of its process; restore them for other tests."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [each.level for each in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


FINE = [ok("all there").of("data"), skipped("no weights in this task").of("weights")]
BAD = [*FINE, warning("32 MiB", "enlarge it").of("shared memory"), failed("refused", "start it").of("MLflow answers")]


def test_nothing_heavy_is_imported_before_the_command_runs() -> None:
    script = (
        "import sys, pkgutil, importlib, cnn_jobs.cli.doctor, cnn_jobs.doctor as package\n"
        "for each in pkgutil.iter_modules(package.__path__): importlib.import_module(f'cnn_jobs.doctor.{each.name}')\n"
        "print(sorted({'torch', 'mlflow', 'boto3', 'requests', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["data", "experiment", "state_dir", "device", "threads"])
def test_options_equal_those_of_train(name: str) -> None:
    (ours,), (theirs,) = ([each for each in command.params if each.name == name] for command in (doctor, train))
    assert (ours.opts, ours.envvar) == (theirs.opts, theirs.envvar)
    assert ours.get_default(click.Context(doctor)) == theirs.get_default(click.Context(train))
    assert ours.type.to_info_dict() == theirs.type.to_info_dict()


def called(findings: list[Finding], *arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(examination, "examine", lambda subject: findings)
    result = CliRunner().invoke(doctor, arguments)
    return result.exit_code, result.output


def test_exit_code_and_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    code, shown = called(BAD[:3], monkeypatch=monkeypatch)
    assert code == 0
    assert shown.endswith("1 ok, 1 warning, 1 skipped; a training can start\n")
    code, shown = called(BAD, monkeypatch=monkeypatch)
    assert code == 2
    assert shown.endswith("1 ok, 1 warning, 1 failed, 1 skipped\n")


def test_json_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code, shown = called(BAD, "--json", monkeypatch=monkeypatch)
    assert (code, shown.count("\n")) == (2, 1)
    content = json.loads(shown)
    assert content["ok"] is False
    assert content["checks"][3] == {
        "check": "MLflow answers",
        "status": "failed",
        "found": "refused",
        "advice": "start it",
    }
    assert json.loads(called(FINE, "--json", monkeypatch=monkeypatch)[1])["ok"] is True


def test_in_a_log_each_check_is_one_line_and_advice_follows() -> None:
    out = io.StringIO()
    long = failed("/" + "folder/" * 60, "do " * 100 + "it").of("disk")
    show([*BAD, long], out)
    table, _, advice = out.getvalue().partition("\n\nWhat to do:\n")
    assert table.splitlines() == [
        "ok       data            all there",
        "skipped  weights         no weights in this task",
        "warning  shared memory   32 MiB",
        "failed   MLflow answers  refused",
        f"failed   disk            {long.found}",
    ]
    assert advice.splitlines()[:3] == [
        " 1. shared memory: enlarge it",
        " 2. MLflow answers: start it",
        f" 3. disk: {long.advice}",
    ]
    assert "\x1b" not in out.getvalue()


def test_weights_for_a_task_without_any_are_a_finding(tmp_path: Path) -> None:
    subject = examination.Subject(
        data="shapes",
        task="task2",
        weights="imagenet",
        tracking_uri="sqlite:////x.db",
        experiment="cnn-jobs",
        state_dir=tmp_path,
        device="cpu",
        threads=0,
    )
    found = {each.check: each for each in examination.run(examination.data_checks(subject), 30)}
    assert (found["weights"].status, "task2 starts from random ones" in found["weights"].found) == ("failed", True)
