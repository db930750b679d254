"""A run that lost its process and its disk ends like one that did not, with MLflow on PostgreSQL and S3.

Its pods are processes with the command and environment of the rendered Jobs, each in a network in which only the
MLflow server can be reached.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.report.formats import FILE_NAMES
from cnn_jobs.tracking.client import DIGEST_LENGTH, TrackingClient
from cnn_jobs.tracking.records import DatasetInput
from tests.helpers.datasets import striped_dataset
from tests.helpers.mlflow_pod import Running
from tests.helpers.postgres_server import Database, has_postgres
from tests.helpers.survival import Outcome, compare, outcome_of
from tests.helpers.tracking import MLFLOW_WARNING
from tests.helpers.waiting import until
from tests.stack import pod_network
from tests.stack.job_pod import TIMEOUT_S, JobPod

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings(MLFLOW_WARNING),
    pytest.mark.skipif(not has_postgres(), reason="PostgreSQL or psycopg is not installed"),
    pytest.mark.skipif(bool(pod_network.why_not()), reason=pod_network.why_not()),
]

EXPERIMENT = "cnn-jobs"  # of the stack's ConfigMap
# 900 of 1,000 pictures train: 45 steps an epoch, a validation and a checkpoint after each. Many epochs, so that the
# first checkpoint is in MLflow well before the last step, also on a fast machine.
EPOCHS, STEPS = 20, 900
PROBE = """
import json, socket, sys
def ask(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return type(error).__name__
    return "reached"
print(json.dumps([ask(*place) for place in json.loads(sys.argv[1])]))
"""
# MLflow's client alone, with the settings of the environment.
FETCH = """
import sys
from mlflow import MlflowClient
client = MlflowClient()
assert "checkpoints/last.pt" in [each.path for each in client.list_artifacts(sys.argv[1], "checkpoints")]
print("asked", flush=True)
client.download_artifacts(sys.argv[1], "checkpoints/last.pt")
print("fetched", flush=True)
"""
# A fetch takes less than a second; the direct way retries for more than a minute.
FETCH_S = 10


@pytest.fixture(scope="module")
def pod(server: Running, tmp_path_factory: pytest.TempPathFactory) -> JobPod:
    """A Job whose pod trains for some seconds; the other pods are derived from it."""
    folder = tmp_path_factory.mktemp("pods")
    data = folder / "stripes.npz"
    write_prepared(striped_dataset(train=1000, test=100), data, compressed=False)
    settings = {
        "CNN_JOBS_DATA": str(data),
        "CNN_JOBS_EPOCHS": str(EPOCHS),
        "CNN_JOBS_BATCH_SIZE": "20",
        "CNN_JOBS_VALIDATIONS_PER_EPOCH": "1",
        "CNN_JOBS_EARLY_STOP_COUNT": "0",
        # Two pods share two cores.
        "CNN_JOBS_THREADS": "1",
    }
    return JobPod("task2", "uid-of-the-whole", "task2-whole", folder / "whole", server.port, settings)


def pod_of(pod: JobPod, uid: str, name: str) -> JobPod:
    """Another pod, with an empty disk."""
    return replace(pod, uid=uid, name=name, disk=pod.disk.with_name(name))


def outcome(pod: JobPod) -> Outcome:
    """The pod's run in MLflow."""
    return outcome_of(f"http://127.0.0.1:{pod.mlflow_port}", EXPERIMENT, pod.uid)


def runs_of(pod: JobPod) -> Any:
    """The pod's runs in MLflow: one, or none before it is created."""
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{pod.mlflow_port}")
    found = client.get_experiment_by_name(EXPERIMENT)
    condition = f"tags.`cnn_jobs.run_key` = '{pod.uid}'"
    return client.search_runs([found.experiment_id], condition) if found else []


def shipped_checkpoints(pod: JobPod) -> set[str]:
    """Names of the checkpoints of the pod's run in MLflow."""
    from mlflow import MlflowClient

    uri = f"http://127.0.0.1:{pod.mlflow_port}"
    found = runs_of(pod)
    return (
        {each.path for each in MlflowClient(uri).list_artifacts(found[0].info.run_id, "checkpoints")}
        if found
        else set()
    )


@pytest.fixture(scope="module")
def trained(pod: JobPod) -> tuple[Outcome, JobPod]:
    """The outcome of an undisturbed run, and a pod that was killed and lost its disk."""
    killed = pod_of(pod, "uid-of-the-killed", "task2-first")
    with pod.start() as whole, killed.start() as process:
        until(lambda: process.poll() is not None or "checkpoints/last.pt" in shipped_checkpoints(killed), TIMEOUT_S)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL, killed.log.read_text()
        shutil.rmtree(killed.path("/state"))
        assert whole.wait(TIMEOUT_S) == 0, pod.log.read_text()
    return outcome(pod), killed


def test_a_pod_reaches_mlflow_and_neither_the_store_nor_the_database(
    pod: JobPod, secret: dict[str, str], database: Database
) -> None:
    store = urlsplit(secret["MLFLOW_S3_ENDPOINT_URL"])
    places = [("mlflow", 5000), (store.hostname, store.port), ("127.0.0.1", database.port), ("10.96.0.1", 443)]
    words = [sys.executable, "-c", PROBE, json.dumps(places)]
    with pod_of(pod, "uid-of-the-probe", "probe").network() as network:
        inside, outside = (
            json.loads(subprocess.run([*start, *words], capture_output=True, check=True, timeout=60).stdout)
            for start in (network.words, [])
        )
    assert inside[0] == "reached"
    assert "reached" not in inside[1:]
    # Outside of the pod's network they can be reached.
    assert outside[1:3] == ["reached", "reached"]
    assert secret["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql")


def test_runs_that_log_a_new_data_set_at_the_same_time_all_get_it(server: Running, database: Database) -> None:
    """As in an Indexed Job: another run's row appears between MLflow's query and its insert."""
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{server.port}")
    experiment = client.create_experiment("together")
    run_id = client.create_run(experiment).info.run_id
    data = DatasetInput("stripes", "d" * 64, "stripes", {"images": 5})
    row = ("the-other-run's", int(experiment), data.name, data.digest[:DIGEST_LENGTH], "uri", "{}")
    columns = "dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source"
    waits = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'insert into datasets%'"
    )
    with database.connect() as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            other.execute(f"insert into datasets ({columns}) values (%s, %s, %s, %s, %s, %s)", row)
            ours = pool.submit(TrackingClient(f"http://127.0.0.1:{server.port}").log_dataset, run_id, data)
            with database.connect() as watching:
                until(lambda: ours.done() or watching.execute(waits).fetchone()[0])
        ours.result(60)
    (found,) = client.get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == (data.name, data.digest[:DIGEST_LENGTH])


def test_a_killed_run_without_its_disk_ends_like_an_undisturbed_one(
    trained: tuple[Outcome, JobPod], tmp_path: Path
) -> None:
    whole, killed = trained
    assert whole.status == "FINISHED"
    assert len([row for row in whole.rows if row[0] == "train/loss"]) == STEPS
    (run,) = runs_of(killed)
    assert run.info.status == "RUNNING"  # SIGKILL leaves it so

    second = pod_of(killed, killed.uid, "task2-second")
    assert second.run("--resume", "must") == 0, second.log.read_text()
    resumed = outcome(second)
    assert compare(whole, resumed) == []
    assert (resumed.status, resumed.tags["cnn_jobs.state"]) == ("FINISHED", "finished")
    assert resumed.tags["cnn_jobs.attempt"] == "2"
    assert (resumed.tags["cnn_jobs.job_uid"], resumed.tags["cnn_jobs.pod"]) == (killed.uid, second.name)
    # It resumed from a checkpoint in MLflow, neither from the beginning nor from the end.
    first = json.loads(second.log.read_text().splitlines()[0])
    assert first["message"] == f"training, at most {STEPS} steps"
    assert 0 < first["step"] < STEPS


def test_with_mlflows_defaults_a_checkpoint_cannot_be_fetched(trained: tuple[Outcome, JobPod], tmp_path: Path) -> None:
    """Negative control: the client then fetches files from S3 itself, which a pod cannot reach."""
    _, killed = trained
    (run,) = runs_of(killed)
    control = pod_of(killed, killed.uid, "control")
    own = control.environment()
    names = [f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}" for way in ("DOWNLOAD", "UPLOAD")]
    assert [own[name] for name in names] == ["false", "false"]
    without = {name: value for name, value in own.items() if name not in names}
    words = [sys.executable, "-c", FETCH, run.info.run_id]
    output = {name: (tmp_path / name) for name in ("as rendered", "without")}
    with (
        control.network() as network,
        output["as rendered"].open("wb") as first,
        output["without"].open("wb") as second,
    ):
        fetching = subprocess.Popen([*network.words, *words], env=own, stdout=first)
        direct = subprocess.Popen([*network.words, *words], env=without, stdout=second)
        try:
            assert fetching.wait(TIMEOUT_S) == 0
            until(lambda: output["without"].read_text() or direct.poll() is not None, TIMEOUT_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                direct.wait(FETCH_S)
        finally:
            for process in (fetching, direct):
                process.kill()
                process.wait(30)
    came = {name: path.read_text().split() for name, path in output.items()}
    assert came == {"as rendered": ["asked", "fetched"], "without": ["asked"]}


def test_their_report_is_kept_in_mlflow(trained: tuple[Outcome, JobPod], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    whole, killed = trained
    report = replace(killed, job="report", uid="uid-of-the-report", disk=killed.disk.with_name("report"))
    assert report.run() == 0, report.log.read_text()
    client = MlflowClient(f"http://127.0.0.1:{killed.mlflow_port}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    (run,) = [each for each in client.search_runs([experiment.experiment_id]) if each.info.run_name == "report"]
    kept = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert (run.info.status, kept) == ("FINISHED", {*FILE_NAMES.values(), "plots"})
    content = client.download_artifacts(run.info.run_id, FILE_NAMES["json"], str(tmp_path))
    numbers = json.loads(Path(content).read_text())["numbers"]
    # Both runs have the same recipe and seed, of which the report counts one.
    ids = {each.info.run_id for each in client.search_runs([experiment.experiment_id])} - {run.info.run_id}
    assert len(ids) == 2
    (loss,) = [n for n in numbers if (n["measure"], n["statistic"]) == ("last/test_loss", "mean")]
    assert (loss["value"],) == tuple(value for name, _, value in whole.rows if name == "last/test_loss")
    assert len(loss["run_ids"]) == 1
    assert set(loss["run_ids"]) < ids
