"""Dashboard and alerts of ``k8s/monitoring``: they use only exported series, and the alerts fire when they should."""

from __future__ import annotations

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
from tests.helpers.dashboard import DASHBOARD, FOLDER, panels
from tests.helpers.metrics_pages import all_families

DOCS = FOLDER.parents[1] / "docs/operations.md"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
# Labels that a scrape adds to every series.
SCRAPED = {"job", "instance", "namespace", "pod", "run"}
VALUES = {
    "phase": {phase.value for phase in Phase},
    "state": set(run_status.STATES),
    "kind": {*UPLOAD_ERRORS, "used", "peak", "limit"},
    "usefulness": {"useful", "wasted"},
}

EXPRESSIONS = [rule["expr"] for rule in ALERTS] + [t["expr"] for panel in panels() for t in panel["targets"]]
QUERIES = [entry["query"]["query"] for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query"]


@pytest.fixture(scope="module")
def names() -> dict[str, set[str]]:
    """Every series of the page and of the Pushgateway, with its labels."""
    found: dict[str, set[str]] = {}
    for family in all_families():
        for sample in family.samples:
            found.setdefault(sample.name, {"task"}).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS + QUERIES)
def test_expressions_use_only_exported_metrics_labels_and_values(expression: str, names: dict[str, set[str]]) -> None:
    found = re.findall(r"(cnn_jobs_\w+)(?:\{([^}]*)\})?", expression)
    assert found
    for name, selector in found:
        assert name in names
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selector):
            assert label in names[name] | SCRAPED, (name, label)
            if label in VALUES:
                assert set(value.split("|")) <= VALUES[label], (name, operator, value)
    for labels in re.findall(r"(?:by|ignoring|on) \(([^)]*)\)", expression):
        every = set.union(*(names[name] for name, _ in found)) | SCRAPED
        assert {label.strip() for label in labels.split(",")} <= every
    for label in re.findall(r"label_values\([^)]*, (\w+)\)", expression):
        assert label in names[found[0][0]] | SCRAPED


def test_labels_have_a_bounded_number_of_values(names: dict[str, set[str]]) -> None:
    bounded = {"task", *VALUES, "version", "device"}
    assert set().union(*names.values()) <= bounded


def test_metrics_without_a_panel_or_alert_are_known(names: dict[str, set[str]]) -> None:
    shown = set(re.findall(r"cnn_jobs_\w+", " ".join(EXPRESSIONS)))
    assert set(names) - shown == {
        "cnn_jobs_build_info",
        "cnn_jobs_last_completion_timestamp_seconds",
        "cnn_jobs_planned_epochs",
        "cnn_jobs_start_timestamp_seconds",
        "cnn_jobs_steps_total",
        "cnn_jobs_train_images_per_second",
    }


def test_dashboard_has_variables_and_described_panels() -> None:
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
def test_every_alert_has_a_section_in_the_manual(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in DOCS.read_text()
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_prometheus_operator_gets_the_same_rules() -> None:
    document = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())
    assert document["spec"] == yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")


def test_pod_monitor_names_a_run_by_its_job_and_index() -> None:
    """Prometheus joins the values, and anchors an expression at both ends."""
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
def test_rules_are_valid_and_pass_their_tests() -> None:
    assert promtool("check", "rules", "alerts.yaml").returncode == 0
    tested = promtool("test", "rules", "alerts.test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.integration
@needs_promtool
@pytest.mark.parametrize(
    ("text", "changed"),
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
def test_changed_rule_fails_its_test(text: str, changed: str, tmp_path: Path) -> None:
    rules = (FOLDER / "alerts.yaml").read_text()
    assert rules.count(text) == 1
    (tmp_path / "alerts.yaml").write_text(rules.replace(text, changed))
    shutil.copy(FOLDER / "alerts.test.yaml", tmp_path)
    assert promtool("test", "rules", "alerts.test.yaml", folder=tmp_path).returncode == 1


@pytest.mark.integration
@needs_promtool
def test_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_manual_lists_every_metric() -> None:
    page = DOCS.read_text()
    table = ["| metric | labels beside `task` | what it is |", "|---|---|---|"]
    for family in all_families():
        sample = family.samples[0]
        labels = ", ".join(f"`{name}`" for name in sorted(sample.labels) if name != "task")
        table.append(f"| `{sample.name}` | {labels} | {family.documentation} |")
    shown = page[page.index("<!-- metrics: begin -->") : page.index("<!-- metrics: end -->")]
    assert shown == "\n".join(["<!-- metrics: begin -->", "", *table, "", ""])
