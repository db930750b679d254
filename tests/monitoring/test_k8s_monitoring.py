"""Dashboard and alerts name only what is exported, and the alerts ring when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.connection import UPLOAD_ERRORS
from cnn_jobs.training.observer import Phase
from tests.monitoring.pages import exported, metrics_table

FOLDER = Path(__file__).resolve().parents[2] / "k8s/monitoring"
DOCS = FOLDER.parents[1] / "docs/operations.md"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
# What a scrape adds to every series.
SCRAPED = {"job", "instance", "namespace", "pod", "run"}
VALUES = {
    "phase": {phase.value for phase in Phase},
    "state": set(run_status.STATES),
    "kind": {*UPLOAD_ERRORS, "used", "peak", "limit"},
    "usefulness": {"useful", "wasted"},
}


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


EXPRESSIONS = [rule["expr"] for rule in ALERTS] + [t["expr"] for panel in panels() for t in panel["targets"]]
QUERIES = [entry["query"]["query"] for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query"]


@pytest.fixture(scope="module")
def names() -> dict[str, set[str]]:
    """Every series that a process or a Pushgateway shows, with the labels it has."""
    return exported()


@pytest.mark.parametrize("expression", EXPRESSIONS + QUERIES)
def test_every_metric_label_and_value_that_is_named_is_exported(expression: str, names: dict[str, set[str]]) -> None:
    found = re.findall(r"(cnn_jobs_\w+)(?:\{([^}]*)\})?", expression)
    assert found
    for name, selector in found:
        assert name in names
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selector):
            assert label in names[name] | SCRAPED, (name, label)
            if label in VALUES:
                assert set(value.split("|")) <= VALUES[label], (name, operator, value)
    for words in re.findall(r"(?:by|ignoring|on) \(([^)]*)\)", expression):
        every = set.union(*(names[name] for name, _ in found)) | SCRAPED
        assert {word.strip() for word in words.split(",")} <= every
    for words in re.findall(r"label_values\([^)]*, (\w+)\)", expression):
        assert words in names[found[0][0]] | SCRAPED


def test_no_label_can_take_more_and_more_values(names: dict[str, set[str]]) -> None:
    bounded = {"task", *VALUES, "version", "device"}
    assert set().union(*names.values()) <= bounded


def test_every_metric_is_on_the_dashboard_or_in_an_alert_or_only_for_those_who_ask(names: dict[str, set[str]]) -> None:
    shown = set(re.findall(r"cnn_jobs_\w+", " ".join(EXPRESSIONS)))
    assert set(names) - shown == {
        "cnn_jobs_build_info",
        "cnn_jobs_last_completion_timestamp_seconds",
        "cnn_jobs_planned_epochs",
        "cnn_jobs_start_timestamp_seconds",
        "cnn_jobs_steps_total",
        "cnn_jobs_train_images_per_second",
    }


def test_the_dashboard_has_variables_for_task_and_run_and_every_panel_says_what_it_shows() -> None:
    assert [entry["name"] for entry in DASHBOARD["templating"]["list"]] == ["datasource", "task", "run"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert '$task"' in target["expr"]
    fields = {cell for panel in DASHBOARD["panels"] for cell in _cells(panel["gridPos"])}
    assert len(fields) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in DASHBOARD["panels"])


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    assert place["x"] + place["w"] <= 24
    for x in range(place["x"], place["x"] + place["w"]):
        yield from ((x, y) for y in range(place["y"], place["y"] + place["h"]))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_part_in_the_operations_manual(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in DOCS.read_text()
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_operator_gets_the_same_rules() -> None:
    document = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())
    assert document["spec"] == yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")


def test_the_pod_monitor_names_a_run_by_its_job_and_index() -> None:
    """As Prometheus relabels: the values are joined, an expression is anchored at both ends."""
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    join, strip = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
    assert (join["targetLabel"], strip["sourceLabels"], strip["targetLabel"]) == ("run", ["run"], "run")
    for job, index, run in (("task2", "", "task2"), ("task2-seeds", "3", "task2-seeds-3")):
        joined = join["separator"].join([job, index])
        match = re.fullmatch(strip["regex"], joined)
        assert (match.expand(strip["replacement"].replace("$", "\\")) if match else joined) == run


needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.integration
@needs_promtool
def test_promtool_finds_the_rules_correct_and_their_tests_pass() -> None:
    assert promtool("check", "rules", "alerts.yaml").returncode == 0
    tested = promtool("test", "rules", "alerts.test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.integration
@needs_promtool
@pytest.mark.parametrize(
    ("there", "changed"),
    [
        ("> 900\n", "> 9000\n"),
        ('"ended|shipping"', '"ended"'),
        ("> 1800", "> 2400"),
        ('phase="training"', 'phase="evaluation"'),
        ("> 300\n", "> 900\n"),
        ("[10m]) > 0", "[10m]) >= 0"),
        ('"failed|diverged"', '"failed"'),
        ("!= 75", "!= 2"),
        (">= 3", ">= 4"),
    ],
)
def test_a_rule_that_is_changed_fails_its_test(there: str, changed: str, tmp_path: Path) -> None:
    text = (FOLDER / "alerts.yaml").read_text()
    assert text.count(there) == 1
    (tmp_path / "alerts.yaml").write_text(text.replace(there, changed))
    shutil.copy(FOLDER / "alerts.test.yaml", tmp_path)
    assert promtool("test", "rules", "alerts.test.yaml", folder=tmp_path).returncode == 1


@pytest.mark.integration
@needs_promtool
def test_promtool_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    wanted = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(wanted)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_the_manual_lists_every_metric_as_the_page_explains_it() -> None:
    page = DOCS.read_text()
    shown = page[page.index("<!-- metrics: begin -->") : page.index("<!-- metrics: end -->")]
    assert shown == f"<!-- metrics: begin -->\n\n{metrics_table()}\n\n"
