"""Whatever happens between uploader and server, the server has the journal's rows: none missing, none duplicate."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.local_server.server import Server, start_server, stop_server
from cnn_jobs.tracking.journal import Reader
from cnn_jobs.tracking.records import Metric
from tests.helpers import forkserver
from tests.helpers.fault_proxy import Fault, FaultProxy, random_schedule
from tests.helpers.forkserver import Child, Completed
from tests.helpers.survival import EXIT_CODES, Lab, compare
from tests.helpers.tracking import client, runs_in
from tests.helpers.training import STEPS as TRAINING_STEPS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]

SCHEDULES = 200
CONCURRENT = 5
STEPS = 40
ROWS = STEPS + 3 * STEPS // 5  # a loss at each step, and three figures at every fifth
TRANSIENT = [fault for fault in Fault if fault not in (Fault.PASS, Fault.BAD_REQUEST)]


@dataclass
class Site:
    """A server and a folder."""

    server: Server
    folder: Path

    def start(self, url: str, key: str, steps: int, back: int, deadline_s: float, control: str = "") -> Child:
        """Starts one attempt: tests/helpers/upload_child.py."""
        arguments = [str(self.folder / "state"), url, key, steps, back, deadline_s, control]
        return forkserver.start(self.folder / "children", [], {}, "tests.helpers.upload_child:run", arguments)

    def runs(self, key: str) -> list[Any]:
        return runs_in(self.server.url, "faults", key)

    def status(self, key: str) -> str:
        """Of the key's run in MLflow, "" where there is none."""
        found = self.runs(key)
        return str(found[0].info.status) if found else ""

    def journal_rows(self, key: str) -> tuple[set[Any], list[Any]]:
        """Identities of the journal's rows, and of the rejected ones."""
        folder = self.folder / "state" / key
        reader, rows = Reader(folder / "journal.jsonl"), set()
        while entries := reader.read():
            for entry in entries:
                if entry.kind == "metrics":
                    for name, value in entry.content["values"].items():
                        rows.add(Metric(name, value, entry.content["step"], 0).identity)
        path = folder / "rejected.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return rows, [Metric(**line["content"]).identity for line in lines if line["kind"] == "metric"]

    def server_rows(self, run: Any) -> list[Any]:
        remote = client(self.server.url)
        points = [point for key in run.data.metrics for point in remote.get_metric_history(run.info.run_id, key)]
        return [Metric(point.key, point.value, point.step, 0).identity for point in points]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("faults")
    server = start_server(folder / "server")
    try:
        yield Site(server, folder)
    finally:
        stop_server(folder / "server")


@dataclass
class Played:
    """The result of one schedule. ``lost_late``: the run was FINISHED, and then its journal was lost."""

    key: str
    completed: Completed
    kills: int
    faults: int
    lost_late: bool = False
    rows: int = 0
    errors: list[str] = field(default_factory=list)


def play(site: Site, seed: int, control: str = "") -> Played:
    """Records through a proxy with faults, is killed at least once, and resumes until everything is delivered."""
    chance, key = random.Random(seed), f"run-{seed}{control}"
    faults = chance.sample(TRANSIENT, chance.randint(2, len(TRANSIENT)))
    if chance.random() < 0.25:
        faults.append(Fault.BAD_REQUEST)
    upstream = ("127.0.0.1", site.server.port)
    kills = 0
    schedule = random_schedule(seed, rate=chance.uniform(0.1, 0.5), faults=faults)
    # Mostly shorter than the client's timeout of a second, so that the schedules do not only wait.
    with FaultProxy(upstream, schedule, hang_s=chance.choice([0.1, 0.2, 0.3, 1.5])) as proxy:

        def start(deadline_s: float) -> Child:
            return site.start(proxy.url, key, STEPS, chance.choice([0, 0, 3, 10]), deadline_s, control)

        lose, lost_late = chance.random() < 0.25 or control == "memory", False
        for _ in range(chance.choice([1, 1, 2, 3])):
            if chance.random() < 0.2:  # the server is away during this attempt
                proxy.upstream = ("127.0.0.1", 9)
            child = start(10.0)
            time.sleep(chance.uniform(0.02, 1.2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            completed = child.wait()
            kills += completed.code == -signal.SIGKILL
            proxy.upstream = upstream
            # The signal may arrive after the run is FINISHED: another attempt would change nothing.
            if done := site.status(key) == "FINISHED":
                completed = replace(completed, code=0)
                break
        if not done:
            if lose:  # the disk is lost with the pod: everything is recorded and sent again
                shutil.rmtree(site.folder / "state" / key, ignore_errors=True)
            completed = start(2.0).wait()
            if completed.code not in (0, 1):
                proxy.schedule = lambda request: Fault.PASS
                completed = start(30.0).wait()
            # The last request of a killed attempt may have been on its way and have finished the run.
            if "was finished by attempt" in completed.stderr and site.status(key) == "FINISHED":
                completed, lost_late = replace(completed, code=0), lose
        count = sum(fault is not Fault.PASS for _, fault in proxy.log)
    return Played(key, completed, kills, count, lost_late)


def play_all(site: Site, seeds: range, control: str = "") -> list[Played]:
    """Plays several at once and checks them one after another: MLflow's downloads are not safe in threads."""
    with ThreadPoolExecutor(CONCURRENT) as pool:
        played = list(pool.map(lambda seed: play(site, seed, control), seeds))
    for each in played:
        check(site, each)
    return played


def check(site: Site, played: Played) -> None:
    """Compares server and journal."""
    key, completed, found = played.key, played.completed, site.runs(played.key)
    if len(found) != 1:
        played.errors.append(f"{key}: {len(found)} runs")
        return
    (run,) = found
    journal, rejected = site.journal_rows(key)
    rows = site.server_rows(run)
    played.rows = len(rows)
    if len(rows) != len(set(rows)):
        played.errors.append(f"{key}: {len(rows) - len(set(rows))} duplicate rows")
    if played.lost_late:
        if len(rows) != ROWS:
            played.errors.append(f"{key}: {len(rows)} of {ROWS} rows, and the journal is lost")
    # A rejected row may be there all the same: from an earlier call whose answer was lost.
    elif not journal - set(rejected) <= set(rows) <= journal:
        played.errors.append(f"{key}: rows differ by {sorted(set(rows) ^ (journal - set(rejected)), key=str)[:3]}")
    refused = (site.folder / "state" / key / "rejected.jsonl").exists()
    expected = (1, "FAILED") if refused else (0, "FINISHED")
    if (completed.code, run.info.status) != expected:
        played.errors.append(f"{key}: {completed.code} {run.info.status}, expected {expected}: {completed.stderr}")
    if not refused and not played.errors:
        check_content(site, run, played)


def check_content(site: Site, run: Any, played: Played) -> None:
    """Checks params, artifacts and tags."""
    if run.data.params != {"lr": "0.1", "seed": "3"}:
        played.errors.append(f"{played.key}: params {run.data.params}")
    folder = site.folder / "fetched" / played.key
    folder.mkdir(parents=True)
    for name, content in (("checkpoints/state.bin", bytes([STEPS]) * 3000), ("files/done.txt", b"complete")):
        path = Path(client(site.server.url).download_artifacts(run.info.run_id, name, str(folder)))
        if path.read_bytes() != content:
            played.errors.append(f"{played.key}: {name} has other content")
    if run.data.tags["step"] != str(STEPS):
        played.errors.append(f"{played.key}: tag {run.data.tags['step']}")


def test_no_row_is_lost_or_duplicated(site: Site, record_property: Any, capsys: Any) -> None:
    played = play_all(site, range(SCHEDULES))
    kills, faults, rows = (sum(getattr(each, name) for each in played) for name in ("kills", "faults", "rows"))
    summary = f"{SCHEDULES} schedules, {kills} SIGKILLs, {faults} faults, {rows} rows compared"
    record_property("summary", summary)
    with capsys.disabled():
        sys.stdout.write(f"\n{summary}\n")
    errors = [line for each in played for line in each.errors]
    assert not errors, "\n".join(errors)
    # The schedules had enough kills, faults and rows.
    assert kills >= SCHEDULES * 0.8
    assert faults >= 5 * SCHEDULES
    assert rows > 60 * SCHEDULES


@pytest.mark.parametrize("control", ["memory", "search"])
def test_schedules_detect_a_faulty_uploader(site: Site, control: str) -> None:
    """Control experiments: an uploader that sends rows twice, and one that creates a run without a search."""
    assert [line for each in play_all(site, range(12), control) for line in each.errors]


def test_server_that_is_restarted_has_every_row(tmp_path: Path) -> None:
    """The server itself is away, with requests in progress."""
    server = start_server(tmp_path / "own")
    own = Site(server, tmp_path)
    try:
        with FaultProxy(("127.0.0.1", server.port)) as proxy:
            child = own.start(proxy.url, "restart", 400, 0, 90.0)
            time.sleep(1.0)
            stop_server(tmp_path / "own")
            time.sleep(1.0)
            own.server = start_server(tmp_path / "own")
            proxy.upstream = ("127.0.0.1", own.server.port)
            completed = child.wait(150)
        (run,) = own.runs("restart")
        journal, _ = own.journal_rows("restart")
        rows = own.server_rows(run)
        assert (completed.code, run.info.status) == (0, "FINISHED"), completed.stderr
        assert len(rows) == len(set(rows))
        assert set(rows) == journal
    finally:
        stop_server(tmp_path / "own")


# -- the training command ----------------------------------------------------------------------------------------------


def train_over_a_bad_connection(lab: Lab, seed: int) -> tuple[str, str]:
    """Trains through a proxy with faults, is stopped once, and continues until it is done; returns task and key."""
    chance = random.Random(1000 + seed)
    task, key = ("task2", "task3e")[seed % 2], f"connection-{seed}"
    port = int(lab.uri.rpartition(":")[2])
    with FaultProxy(("127.0.0.1", port), random_schedule(seed, rate=0.1, faults=TRANSIENT), hang_s=1.5) as proxy:
        environment = {"MLFLOW_TRACKING_URI": proxy.url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
        step, sent = chance.randint(1, TRAINING_STEPS), chance.choice(["SIGKILL", "SIGTERM"])
        done = lab.train(task, key, hook="signal_at_step", hook_args=[step, sent], **environment)
        assert done.code == EXIT_CODES[sent], done.stderr
        if chance.random() < 0.5:
            lab.lose_state(key)
        for _ in range(5):
            done = lab.train(task, key, **environment)
            if done.code == 0:
                break
            assert done.code == 75, done.stderr
        assert any(fault is not Fault.PASS for _, fault in proxy.log)
    assert done.code == 0, done.stderr
    return task, key


def test_training_over_a_bad_connection_is_the_same_run(lab: Lab) -> None:
    references = {task: lab.reference(task) for task in ("task2", "task3e")}
    with ThreadPoolExecutor(3) as pool:
        trained = list(pool.map(lambda seed: train_over_a_bad_connection(lab, seed), range(10)))
    assert [line for task, key in trained for line in compare(references[task], lab.outcome(task, key))] == []
