"""Time that ``cnn-jobs report`` takes in addition to MLflow's own calls, and its peak memory.

    python -m benchmarks.report_speed              # measures; writes report_speed.json and docs/report-speed.md
    python -m benchmarks.report_speed --render     # renders the page from the JSON file

Each measurement is a separate process with a local MLflow server: the whole report, or the same calls by MLflow's own
client, whose responses are dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.children import environment, json_from
from benchmarks.figures import Summary
from benchmarks.render import conditions_line, into_page, table
from benchmarks.report_runs import EXPERIMENT, NAMES, make_store
from cnn_jobs.monitoring.metrics import peak_memory
from cnn_jobs.system.files import write_text

ROOT = Path(__file__).resolve().parents[1]
JSON_FILE, PAGE = ROOT / "benchmarks/report_speed.json", ROOT / "docs/report-speed.md"
SIZES = ((100, 100), (1000, 1000), (10_000, 100))
TARGET_SIZE = SIZES[1]
NONE = "-"
BEYOND_S, MEMORY_MB = 10.0, 500.0


def whole_report(uri: str, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of the report, in this process."""
    from cnn_jobs.report.report import ReportRequest, make_report

    request = ReportRequest(tracking_uri=uri, experiment=EXPERIMENT, out=folder, log=False, state_dir=folder)
    _import_mlflow()
    began = time.perf_counter()
    made = make_report(request, lambda what, done, total: None)
    seconds = time.perf_counter() - began
    # Of this process only: getrusage would include the peak of its larger parent.
    peak = peak_memory()
    return {"seconds": seconds, "peak_bytes": peak, "runs": len(made.document.run_numbers)}


def calls_alone(uri: str, folder: Path) -> dict[str, float]:
    """Seconds of the same calls by MLflow's own client, with the same concurrency; the responses are dropped."""
    from cnn_jobs.tracking.run_reader import PAGE as PAGE_SIZE
    from cnn_jobs.tracking.run_reader import READERS

    _import_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    began = time.perf_counter()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    ids: list[str] = []
    token: str | None = None
    while True:
        order = ["attributes.start_time ASC"]
        page = client.search_runs([experiment], "", max_results=PAGE_SIZE, order_by=order, page_token=token)
        ids += [run.info.run_id for run in page]
        token = page.token
        if not token:
            break

    def read(run_id: str) -> None:
        for key in ("train/loss", "val/loss", "val/accuracy"):
            client.get_metric_history(run_id, key)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for name in ("confusion.csv", "lineage.json"):
                client.download_artifacts(run_id, name, place)

    with ThreadPoolExecutor(READERS) as readers:
        for _ in readers.map(read, ids):
            pass
    return {"seconds": time.perf_counter() - began, "runs": len(ids)}


def _import_mlflow() -> None:
    from cnn_jobs.tracking.connection import configure_client

    configure_client()
    import mlflow  # noqa: F401


def measure(sizes: list[tuple[int, int]], repeats: int, arguments: list[str]) -> dict[str, Any]:
    """Both contenders for every size, alternately."""
    # Imports torch, which the measured processes must not import.
    from benchmarks.conditions import conditions

    results: dict[str, Any] = {"conditions": conditions(arguments, 2, "benchmarks.report_speed"), "sizes": []}
    for runs, points in sizes:
        with tempfile.TemporaryDirectory(prefix="cnn-jobs-bench-") as name:
            folder = Path(name)
            make_store(folder, runs, points)
            uri = _serve(folder)
            try:
                found: dict[str, list[Any]] = {"report": [], "calls": []}
                many = runs > TARGET_SIZE[0]
                for _ in range(1 if many else repeats):
                    for contender, measured in found.items():
                        if many and contender == "calls":  # takes a quarter of an hour, and no target depends on it
                            continue
                        command = ["-m", "benchmarks.report_speed", "--child", contender, uri, str(folder / "made")]
                        measured.append(json_from(command, environment(folder)))
            finally:
                _local_server("stop", folder)
        results["sizes"].append({"runs": runs, "points": points, **found})
        # The larger sizes take long: store each result at once.
        write_text(JSON_FILE, json.dumps(results, indent=1) + "\n")
    return results


def _serve(folder: Path) -> str:
    """Starts a server on the database and returns its URL."""
    import subprocess

    _local_server("start", folder)
    command = [sys.executable, "-m", "cnn_jobs.local_server", "url", "--dir", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def _local_server(what: str, folder: Path) -> None:
    import subprocess

    command = [sys.executable, "-m", "cnn_jobs.local_server", what, "--dir", str(folder)]
    subprocess.run([*command, *(["--port", "5077"] if what == "start" else [])], check=True, cwd=ROOT)


def beyond(size: dict[str, Any]) -> list[float]:
    """Seconds of each report minus those of the calls in the same round."""
    return [one["seconds"] - other["seconds"] for one, other in zip(size["report"], size["calls"], strict=False)]


def render(results: dict[str, Any]) -> str:
    """Tables of the measurements and the targets."""
    rows = [_row(size) for size in results["sizes"]]
    head = ["", "report, s", "calls alone, s", "difference, s", "min to max", "n", "ms a run", "peak MB"]
    parts = [conditions_line(results["conditions"]), table(head, rows)]
    parts.append(f"Runs of {len(NAMES)} tasks; medians; peak: the maximum of all repeats.")
    for size in results["sizes"]:
        if (size["runs"], size["points"]) == TARGET_SIZE:
            more, peak = Summary.of(beyond(size)).median, _peak_mb(size)
            met = [[f"at most {BEYOND_S:.0f} s beyond MLflow's calls", f"{more:.1f} s", _yes(more <= BEYOND_S)]]
            met.append([f"peak memory under {MEMORY_MB:.0f} MB", f"{peak:.0f} MB", _yes(peak < MEMORY_MB)])
            parts.append(table(["target, 1,000 runs of 1,000 points", "measured", "met"], met))
    return "\n\n".join(parts)


def _row(size: dict[str, Any]) -> list[str]:
    seconds = Summary.of([each["seconds"] for each in size["report"]])
    cells = [f"{size['runs']:,} runs of {size['points']:,} points", f"{seconds.median:,.1f}"]
    if size["calls"]:
        calls, more = Summary.of([each["seconds"] for each in size["calls"]]), Summary.of(beyond(size))
        cells += [f"{calls.median:,.1f}", f"{more.median:,.1f}", f"{more.least:.1f} to {more.most:.1f}"]
    else:
        cells += [NONE, NONE, NONE]
    return [*cells, str(seconds.n), f"{1000 * seconds.median / size['runs']:.1f}", f"{_peak_mb(size):,.0f}"]


def _peak_mb(size: dict[str, Any]) -> float:
    return float(max(each["peak_bytes"] for each in size["report"]) / 1e6)


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def main(arguments: list[str]) -> None:
    """Measures, writes, prints; with ``--child`` one measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="only the first sizes")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "URI", "FOLDER"))
    options = parser.parse_args(arguments)
    if options.child:
        what, uri, folder = options.child
        Path(folder).mkdir(parents=True, exist_ok=True)
        print(json.dumps({"report": whole_report, "calls": calls_alone}[what](uri, Path(folder))))
        return
    if not options.render:
        measure(list(SIZES[: options.sizes]), options.repeats, arguments)
    rendered = render(json.loads(JSON_FILE.read_text(encoding="utf-8")))
    print(rendered)
    write_text(PAGE, into_page(PAGE.read_text(encoding="utf-8"), rendered))


if __name__ == "__main__":
    main(sys.argv[1:])
