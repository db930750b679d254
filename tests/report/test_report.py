"""The whole report from a real MLflow, with every number in it computed again independently."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

from cnn_jobs.cli import cli
from cnn_jobs.cli.report import parse_since
from cnn_jobs.errors import UserError
from tests.helpers.made_runs import log_run, metrics_of, params_of, tags_of

TASKS = {"task3-arch1": 3, "task3-arch2": 3, "task3d-batchnorm": 3, "task3d-plain": 2, "task2": 1}
HOSTILE = '<script>alert(1)</script>|`=cmd()`\u202e"><img src=x onerror=alert(2)>' + "x" * 3000


@pytest.fixture
def client(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's own client, with an experiment named 'tests'."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    made = mlflow.MlflowClient(mlflow_uri)
    made.create_experiment("tests", artifact_location=str(Path.cwd() / "artifacts"))
    return made


def log(client: Any, task: str, seed: int, **changes: Any) -> str:
    experiment = client.get_experiment_by_name("tests").experiment_id
    return log_run(client, experiment, Path.cwd(), task, seed, **changes)


def report(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, ["report", "--experiment", "tests", "--out", "made", *arguments])
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit | UserError):
        raise result.exception
    return result


def rows_of_csv() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path("made/tables.csv").read_text())))


class Numbers(HTMLParser):
    """Every <data> of a page as (name, value, shown text), the texts of all cells, and all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, float, str]] = []
        self.cells: list[str] = []
        self.tags: list[str] = []
        self._name: tuple[str, float] | None = None
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "data":
            self._name = (str(given["data-name"]), float(str(given["value"])))
        if tag in ("td", "th") and "cell" in str(given.get("class")):
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._name = None if tag == "data" else self._name
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._name:
            self.shown.append((*self._name, data))
        if self._in_cell:
            self.cells[-1] += data


def expected_numbers(uri: str) -> dict[tuple[str, str, str], float]:
    """By pandas and scipy, from mlflow.search_runs and get_metric_history: values by (group, measure, statistic)."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    runs = mlflow.search_runs(experiment_names=["tests"])
    if "tags.cnn_jobs.role" in runs:
        runs = runs[runs["tags.cnn_jobs.role"].isna()]
    runs = runs[(runs.status == "FINISHED") & (runs["tags.cnn_jobs.state"] == "finished")]
    runs = runs.assign(seed=runs["params.seed"].astype(int)).set_index("seed").sort_index()
    runs["gap"] = runs["metrics.last/train_accuracy"] - runs["metrics.last/test_accuracy"]
    client = mlflow.MlflowClient(uri)
    expected: dict[tuple[str, str, str], float] = {}

    def spread(group: str, measure: str, values: pd.Series) -> None:
        expected[group, measure, "mean"] = values.mean()
        if len(values) > 1:
            expected[group, measure, "sd"] = values.std(ddof=1)
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            expected[group, measure, "low"] = values.mean() - half
            expected[group, measure, "high"] = values.mean() + half

    tasks = {str(task): part for task, part in runs.groupby("tags.cnn_jobs.task")}
    for task, part in tasks.items():
        expected[task, "seeds", "count"] = expected[task, "cost", "runs"] = len(part)
        for column in part.columns[part.columns.str.match("metrics.(last|best)/")]:
            spread(task, column.removeprefix("metrics."), part[column])
        spread(task, "last/gap", part.gap)
        for name in ("attempts", "steps", "wall_seconds", "device_seconds", "device_seconds_thrown_away"):
            expected[task, f"ledger/{name}", "sum"] = part[f"metrics.ledger/{name}"].sum()
        useful = part["metrics.ledger/device_seconds"] - part["metrics.ledger/device_seconds_thrown_away"]
        expected[task, "cost", "useful"] = useful.sum()
        expected[task, "train/images_per_second", "mean"] = part["metrics.train/images_per_second"].mean()
        _history(client, task, part, spread, expected)
    for one, other in (
        ("task3-arch1", "task3-arch2"),
        ("task3d-batchnorm", "task3d-plain"),
        ("task3-arch2", "task3d-batchnorm"),
    ):
        for column in ("metrics.last/test_accuracy", "metrics.best/test_accuracy", "gap"):
            both = pd.concat([tasks[one][column], tasks[other][column]], axis=1, join="inner")
            result = stats.ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
            interval = result.confidence_interval(0.95)
            measure = "last/gap" if column == "gap" else column.removeprefix("metrics.")
            name = f"{one} - {other}"
            expected[name, measure, "effect"] = (both.iloc[:, 0] - both.iloc[:, 1]).mean()
            expected[name, measure, "low"], expected[name, measure, "high"] = interval.low, interval.high
            if column == "metrics.last/test_accuracy":
                expected[name, measure, "p"] = result.pvalue
                expected[name, "pairs", "count"] = len(both)
    return expected


def _history(client: Any, task: str, part: pd.DataFrame, spread: Any, expected: dict[Any, float]) -> None:
    rises, slopes, shares, confusion = [], [], [], np.zeros((2, 2))
    for run_id in part.run_id:
        points = sorted((point.step, point.value) for point in client.get_metric_history(run_id, "val/loss"))
        steps, losses = np.array(points).T
        rises.append(losses[-1] - losses.min())
        slopes.append(np.polyfit(steps[-3:] / 1000, losses[-3:], 1)[0])
        shares.append(steps[losses.argmin()] / steps[-1])
        file = client.download_artifacts(run_id, "confusion.csv")
        confusion += pd.read_csv(file, index_col=0).to_numpy()
    spread(task, "val/loss rise", pd.Series(rises))
    spread(task, "val/loss slope", pd.Series(slopes))
    expected[task, "val/loss", "lowest at"] = float(np.mean(shares))
    for row, true in enumerate(("cat", "dog")):
        expected[task, f"class {true}", "accuracy"] = confusion[row, row] / confusion[row].sum()
        for column, predicted in enumerate(("cat", "dog")):
            expected[task, f"confusion {true}", predicted] = confusion[row, column]


def test_every_number_matches_an_independent_computation(client: Any, mlflow_uri: str) -> None:
    ids = {(task, seed): log(client, task, seed) for task, n in TASKS.items() for seed in range(n)}
    assert report("--no-log").exit_code == 0
    expected = expected_numbers(mlflow_uri)
    p = {name: value for (name, _, statistic), value in expected.items() if statistic == "p"}
    order = sorted(p, key=lambda name: p[name])
    highest = 0.0
    for rank, name in enumerate(order):
        highest = max(highest, min(1, (len(p) - rank) * p[name]))
        expected[name, "last/test_accuracy", "p Holm"] = highest
    reference = {"train_loss": 0.1665, "train_accuracy": 0.9441, "val_accuracy": 0.7962, "test_accuracy": 0.7799}
    found = rows_of_csv()
    used = set()
    for row in found:
        key = (row["group"], row["measure"], row["statistic"])
        if row["statistic"] in ("course report", "minus course report"):
            if row["group"] == "task3-arch1":
                theirs = reference[row["measure"].removeprefix("last/")]
                ours = expected[row["group"], row["measure"], "mean"]
                value = theirs if row["statistic"] == "course report" else pytest.approx(ours - theirs)
                assert float(row["value"]) == value
            continue
        assert float(row["value"]) == pytest.approx(expected[key], rel=1e-9, abs=1e-12), key
        used.add(key)
        names = row["group"].split(" - ")
        behind = {ids[task, seed] for task in names for seed in range(TASKS[task])}
        assert set(row["run_ids"].split()) == behind
    missing = {key for key in expected.keys() - used if "best/step" not in key[1] and expected[key] == expected[key]}
    assert not missing
    _same_in_html_and_markdown(found)


def _same_in_html_and_markdown(rows: list[dict[str, str]]) -> None:
    page = Numbers()
    page.feed(Path("made/report.html").read_text())
    values = {f"{row['group']}|{row['measure']}|{row['statistic']}": float(row["value"]) for row in rows}
    assert len(page.shown) == len(rows)
    for name, value, text in page.shown:
        assert values[name] == value
        shown = float(text.replace("\N{MINUS SIGN}", "-").replace(",", "").replace("< ", ""))
        assert any(abs(shown - each * value) <= 0.5000001 * 10 ** -_digits(text) for each in (1.0, 100.0)), name
    # Other numbers in cells, as the parameters and sizes in the network's table.
    markdown = Path("made/report.md").read_text()
    for cell in (each for each in page.cells if re.search(r"\d", each) and "," not in each):
        assert re.sub(r"\W+", "", cell) in re.sub(r"\W+|<br>|&lt;", "", markdown.replace("<br>", "")), cell
    text = set(re.findall(r"[\d.,]+", markdown))
    assert {each for _, _, shown in page.shown for each in re.findall(r"[\d.,]*\d", shown)} <= {
        each.rstrip(".,") for each in text
    }


def _digits(text: str) -> int:
    return len(text.partition(".")[2])


def test_report_is_logged_to_mlflow_and_not_counted_as_a_run(client: Any) -> None:
    for seed in range(2):
        log(client, "task2", seed)
    first = report()
    assert first.exit_code == 0, first.output
    assert "In MLflow: sqlite" in first.output
    experiment = client.get_experiment_by_name("tests").experiment_id
    kept = client.search_runs([experiment], "tags.`cnn_jobs.role` = 'document'")[0]
    assert kept.info.status == "FINISHED"
    there = {each.path for each in client.list_artifacts(kept.info.run_id)}
    assert there == {"plots", "report.html", "report.md", "tables.csv", "report.json"}
    assert report("--no-log").exit_code == 0
    text = Path("made/report.md").read_text()
    assert "2 finished runs count, 0 do not" in text
    assert "Left out: 1 parents of series and documents" in text


def test_hostile_text_has_no_effect(client: Any) -> None:
    log(client, "task2", 0, name=HOSTILE[:400], tags=tags_of("task2", **{"cnn_jobs.data": "=1+1" + HOSTILE}))
    tags = tags_of("task2", **{"cnn_jobs.state": "failed", "cnn_jobs.reason": HOSTILE, "cnn_jobs.group_hash": "f" * 64})
    log(client, "task2", 1, status="FAILED", tags=tags, params=params_of("task2", 1, optimizer="=2+5"))
    log(
        client,
        "task2",
        2,
        params=params_of("task2", 2, optimizer="@SUM(1)$x^2$"),
        tags=tags | tags_of("task2") | {"cnn_jobs.group_hash": "e" * 64, "cnn_jobs.data": "=1+1"},
    )
    assert report("--no-log").exit_code == 0
    page = Numbers()
    html = Path("made/report.html").read_text()
    page.feed(html)
    assert page.tags.count("script") == 1
    assert "<img src=x" not in html
    assert "\u202e" not in html
    for line in csv.reader(io.StringIO(Path("made/tables.csv").read_text())):
        for cell in line[:5]:
            assert not cell.startswith(("=", "+", "-", "@")), cell
    assert "<script" not in Path("made/report.md").read_text()
    json.loads(Path("made/report.json").read_text())


def test_unreadable_files_are_listed(client: Any) -> None:
    log(client, "task2", 0, without=("confusion.csv", "mistakes.png"))
    broken = log(client, "task2", 1)
    folder = Path.cwd() / "artifacts" / broken / "artifacts"
    (folder / "confusion.csv").write_text("true,cat\ncat,many\n")
    (folder / "lineage.json").write_text("[]")
    assert report("--no-log").exit_code == 0
    text = Path("made/report.md").read_text()
    assert "it has no confusion.csv; it has no mistakes.png" in text
    assert "confusion.csv is damaged" in text
    assert "lineage.json is damaged" in text


def test_nothing_to_report_is_an_error_of_one_line(client: Any) -> None:
    result = report()
    assert isinstance(result.exception, UserError)
    assert "experiment 'tests' has no finished runs" in str(result.exception)
    log(client, "task2", 0, metrics=metrics_of("task2", 0) | {"last/val_loss": float("nan")})
    result = report("--task", "task2")
    assert "no finished runs of task2; 1 others, for example task2-seed0: its last/val_loss is nan" in str(
        result.exception
    )
    assert not Path("made").exists()


def test_requested_comparison_of_single_seeds_on_synthetic_pictures(client: Any) -> None:
    drawn = {"cnn_jobs.data": "shapes", "cnn_jobs.synthetic_data": "true"}
    for task in ("task2", "task3e"):
        log(client, task, 0, tags=tags_of(task, **drawn))
    assert report("--no-log", "--compare", "task3e", "task2", "--format", "md").exit_code == 0
    assert [each.name for each in sorted(Path("made").iterdir())] == ["plots", "report.md"]
    text = Path("made/report.md").read_text()
    assert "synthetic pictures, drawn by this package" in text
    assert "requested, task3e in place of task2: not separable with n = 1 in test accuracy." in text
    assert "one seed" in text
    assert "Course report |" not in text
    assert isinstance(report("--compare", "task2", "task9").exception, UserError)


def test_since_leaves_older_runs_out(client: Any) -> None:
    log(client, "task2", 0)
    assert isinstance(report("--since", "2030-01-01").exception, UserError)
    assert parse_since("2026-11-24T09:30") == 1_795_512_600_000
    with pytest.raises(UserError, match="--since is 'yesterday'"):
        parse_since("yesterday")
