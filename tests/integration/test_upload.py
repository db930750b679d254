"""Whatever happens between shipper and server, the server ends with the journal's rows: none missing, none doubled."""

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
from tests.helpers.fault_proxy import Fault, FaultProxy, random_schedule
from tests.helpers.forkserver import Ended, ForkServer, fork_server
from tests.helpers.survival import STEPS as STEPS_OF_THE_TRAINER
from tests.helpers.survival import Lab, compare

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]

SCHEDULES = 200
AT_ONCE = 5
STEPS = 40
ROWS = STEPS + 3 * STEPS // 5  # a loss a step, and three figures every five of them
PASSING = [fault for fault in Fault if fault not in (Fault.PASS, Fault.BAD_REQUEST)]
CHILD = "tests.helpers.upload_child:run"


@dataclass
class Setting:
    """One long-lived server, one fork server, a folder."""

    server: Server
    children: ForkServer
    folder: Path


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("faults")
    server = start_server(folder / "server")
    try:
        with fork_server(folder / "children") as children:
            yield Setting(server, children, folder)
    finally:
        stop_server(folder / "server")


def client(setting: Setting) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(setting.server.url)


def journal_rows(folder: Path) -> tuple[set[Any], list[Any]]:
    """Identities of the journal's rows, and of those that were rejected."""
    reader, rows = Reader(folder / "journal.jsonl"), set()
    while entries := reader.read():
        for entry in entries:
            if entry.kind == "metrics":
                for key, value in entry.content["values"].items():
                    rows.add(Metric(key, value, entry.content["step"], 0).identity)
    path = folder / "rejected.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return rows, [Metric(**line["content"]).identity for line in lines if line["kind"] == "metric"]


def server_rows(setting: Setting, run: Any) -> list[Any]:
    points = [point for key in run.data.metrics for point in client(setting).get_metric_history(run.info.run_id, key)]
    return [Metric(point.key, point.value, point.step, 0).identity for point in points]


@dataclass
class Played:
    """What one schedule came to; ``wrong`` is empty where all is as it must be."""

    key: str
    ended: Ended
    kills: int
    faults: int
    gone: bool = False  # it was FINISHED, and then its journal was lost
    rows: int = 0
    wrong: list[str] = field(default_factory=list)


def play(setting: Setting, seed: int, forgetful: str = "") -> Played:
    """Records through a proxy that makes faults, is killed once or more, and goes on until everything is delivered."""
    chance, key = random.Random(seed), f"run-{seed}{forgetful}"
    faults = chance.sample(PASSING, chance.randint(2, len(PASSING)))
    if chance.random() < 0.25:
        faults.append(Fault.BAD_REQUEST)
    upstream = ("127.0.0.1", setting.server.port)
    kills = 0
    schedule = random_schedule(seed, rate=chance.uniform(0.1, 0.5), faults=faults)
    # Mostly shorter than the client's patience of a second: otherwise waiting is all that the schedules do.
    with FaultProxy(upstream, schedule, hang_s=chance.choice([0.1, 0.2, 0.3, 1.5])) as proxy:

        def start(deadline_s: float) -> Any:
            back = chance.choice([0, 0, 3, 10])
            arguments = [str(setting.folder / "state"), proxy.url, key, STEPS, back, deadline_s, forgetful]
            return setting.children.start([], {}, hook=CHILD, hook_args=arguments)

        lost, gone = chance.random() < 0.25 or forgetful == "memory", False
        for _ in range(chance.choice([1, 1, 2, 3])):
            if chance.random() < 0.2:  # away for this attempt
                proxy.upstream = ("127.0.0.1", 9)
            child = start(10.0)
            time.sleep(chance.uniform(0.02, 1.2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            ended = child.wait()
            kills += ended.code == -signal.SIGKILL
            proxy.upstream = upstream
            # The signal may come when all is done: whoever goes on is told so, and changes nothing.
            if done := status_of(setting, key) == "FINISHED":
                ended = replace(ended, code=0)
                break
        if not done:
            if lost:  # the disk went with the pod: the rest is recorded, and sent, from the first step on again
                shutil.rmtree(setting.folder / "state" / key, ignore_errors=True)
            ended = start(2.0).wait()
            if ended.code not in (0, 1):
                proxy.schedule = lambda request: Fault.PASS
                ended = start(30.0).wait()
            # The last word of the one that was killed may have been on its way: then there was nothing to go on with.
            if "was finished by attempt" in ended.stderr and status_of(setting, key) == "FINISHED":
                ended, gone = replace(ended, code=0), lost
        bad = sum(fault is not Fault.PASS for _, fault in proxy.log)
    return Played(key, ended, kills, bad, gone)


def status_of(setting: Setting, key: str) -> str:
    """Of the key's run in MLflow, "" where there is none."""
    runs = runs_of(setting, key)
    return str(runs[0].info.status) if runs else ""


def runs_of(setting: Setting, key: str) -> list[Any]:
    """The key's runs in MLflow."""
    experiment = client(setting).get_experiment_by_name("faults")
    ids = [experiment.experiment_id] if experiment else []
    return list(client(setting).search_runs(ids, f"tags.`cnn_jobs.run_key` = '{key}'")) if ids else []


def play_all(setting: Setting, seeds: range, forgetful: str = "") -> list[Played]:
    """Several at once; judged one after another, for MLflow's downloads do not go well together."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = list(pool.map(lambda seed: play(setting, seed, forgetful), seeds))
    return [judge(setting, each) for each in played]


def judge(setting: Setting, played: Played) -> Played:
    """Server against journal."""
    key, ended = played.key, played.ended
    found = runs_of(setting, key)
    if len(found) != 1:
        played.wrong.append(f"{key}: {len(found)} runs")
        return played
    (run,) = found
    journal, rejected = journal_rows(setting.folder / "state" / key)
    rows = server_rows(setting, run)
    played.rows = len(rows)
    if len(rows) != len(set(rows)):
        played.wrong.append(f"{key}: {len(rows) - len(set(rows))} rows doubled")
    if played.gone:
        if len(rows) != ROWS:
            played.wrong.append(f"{key}: {len(rows)} of {ROWS} rows, and the journal is gone")
    # One that was refused may be there all the same: from a first call, whose answer was lost.
    elif not journal - set(rejected) <= set(rows) <= journal:
        played.wrong.append(f"{key}: rows differ by {sorted(set(rows) ^ (journal - set(rejected)), key=str)[:3]}")
    refused = (setting.folder / "state" / key / "rejected.jsonl").exists()
    expected = (1, "FAILED") if refused else (0, "FINISHED")
    if (ended.code, run.info.status) != expected:
        played.wrong.append(f"{key}: {ended.code} {run.info.status}, expected {expected}: {ended.stderr}")
    if not refused and not played.wrong:
        played.wrong += files_of(setting, run, key)
    return played


def files_of(setting: Setting, run: Any, key: str) -> list[str]:
    wrong = [] if run.data.params == {"lr": "0.1", "seed": "3"} else [f"{key}: params {run.data.params}"]
    target = setting.folder / "fetched" / key
    target.mkdir(parents=True)
    for name, content in (("checkpoints/state.bin", bytes([STEPS]) * 3000), ("files/done.txt", b"all of it")):
        path = Path(client(setting).download_artifacts(run.info.run_id, name, str(target)))
        if path.read_bytes() != content:
            wrong.append(f"{key}: {name} holds something else")
    if run.data.tags["step"] != str(STEPS):
        wrong.append(f"{key}: tag {run.data.tags['step']}")
    return wrong


def test_no_row_is_lost_and_none_doubled(setting: Setting, record_property: Any, capsys: Any) -> None:
    played = play_all(setting, range(SCHEDULES))
    wrong = [line for each in played for line in each.wrong]
    kills, faults, rows = (sum(getattr(each, name) for each in played) for name in ("kills", "faults", "rows"))
    summary = f"{SCHEDULES} schedules, {kills} SIGKILLs, {faults} faults, {rows} rows compared"
    record_property("summary", summary)
    with capsys.disabled():
        sys.stdout.write(f"\n{summary}\n")
    assert not wrong, "\n".join(wrong)
    # The schedules did what they are there for.
    assert kills >= SCHEDULES * 0.8
    assert faults >= 5 * SCHEDULES
    assert rows > 60 * SCHEDULES


@pytest.mark.parametrize("forgetful", ["memory", "search"])
def test_a_shipper_that_forgets_is_found_out(setting: Setting, forgetful: str) -> None:
    """The negative control: without what keeps rows and runs single, the same schedules go red."""
    played = play_all(setting, range(12), forgetful)
    assert [line for each in played for line in each.wrong]


def test_a_server_that_is_killed_and_comes_back(setting: Setting, tmp_path: Path) -> None:
    """Not the proxy but the server itself is gone for a while, with requests under way."""
    server = start_server(tmp_path / "own")
    own = Setting(server, setting.children, tmp_path)
    try:
        with FaultProxy(("127.0.0.1", server.port)) as proxy:
            arguments = [str(tmp_path / "state"), proxy.url, "restart", 400, 0, 90.0]
            child = setting.children.start([], {}, hook=CHILD, hook_args=arguments)
            time.sleep(1.0)
            stop_server(tmp_path / "own")
            time.sleep(1.0)
            own.server = start_server(tmp_path / "own")
            proxy.upstream = ("127.0.0.1", own.server.port)
            ended = child.wait(150)
        (run,) = runs_of(own, "restart")
        journal, _ = journal_rows(tmp_path / "state" / "restart")
        rows = server_rows(own, run)
        assert (ended.code, run.info.status) == (0, "FINISHED"), ended.stderr
        assert len(rows) == len(set(rows))
        assert set(rows) == journal
    finally:
        stop_server(tmp_path / "own")


# -- the whole trainer -------------------------------------------------------------------------------------------------


def behind_a_bad_line(lab: Lab, seed: int) -> tuple[str, str]:
    """Trains through a proxy that makes faults, is stopped once, and goes on until all is delivered; task and key."""
    chance = random.Random(1000 + seed)
    task, key = ("task2", "task3e")[seed % 2], f"line-{seed}"
    port = int(lab.uri.rpartition(":")[2])
    with FaultProxy(("127.0.0.1", port), random_schedule(seed, rate=0.1, faults=PASSING), hang_s=1.5) as proxy:
        line = {"MLFLOW_TRACKING_URI": proxy.url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
        step, sent = chance.randint(1, STEPS_OF_THE_TRAINER), chance.choice(["SIGKILL", "SIGTERM"])
        ended = lab.server.run(
            lab.arguments(task),
            lab.environment(key, **line),
            hook="tests.helpers.hooks:kill_at_step",
            hook_args=[step, sent],
        )
        assert ended.code == {"SIGKILL": -9, "SIGTERM": 75}[sent], ended.stderr
        if chance.random() < 0.5:
            lab.lose_state(key)
        for _ in range(5):
            ended = lab.server.run(
                lab.arguments(task), lab.environment(key, **line), hook="tests.helpers.hooks:cheap_outputs"
            )
            if ended.code == 0:
                break
            assert ended.code == 75, ended.stderr
        assert any(fault is not Fault.PASS for _, fault in proxy.log)
    assert ended.code == 0, ended.stderr
    return task, key


def test_the_whole_trainer_behind_a_bad_line(lab: Lab) -> None:
    wholes = {}
    for task in ("task2", "task3e"):
        assert lab.train(task, f"{task}-whole").code == 0
        wholes[task] = lab.outcome(task, f"{task}-whole")
    with ThreadPoolExecutor(3) as pool:
        trained = list(pool.map(lambda seed: behind_a_bad_line(lab, seed), range(10)))
    assert [line for task, key in trained for line in compare(wholes[task], lab.outcome(task, key))] == []
