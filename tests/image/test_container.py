"""Both images, built from the unchanged Dockerfiles and run read-only, as the manifests' user, without privileges.

Needs root, buildah, podman and, without the base image, debootstrap. Takes minutes and gigabytes: 'make test-all'
skips it, 'make image-test' runs it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnn_jobs import __version__
from cnn_jobs.local_server.server import free_port
from tests.helpers.kustomize import STACK
from tests.helpers.mlflow_pod import command, container_of
from tests.helpers.waiting import until
from tests.image.containers import BASE, BUILD_FLAGS, RUN, USER, build, call, copy_tree, inspect, layers, python, run
from tests.image.locks import CUDA, ROOT, read
from tests.image.package_index import wheel

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]
PLATFORM = "manylinux_2_28_x86_64"
# Without a mount at /tmp.
RUN_PLAIN = [option for option in RUN[3:] if option != "--tmpfs=/tmp"]
JOBS, SERVER = f"cnn-jobs:{__version__}", "cnn-jobs-mlflow:3.17.2-1"


@pytest.fixture(scope="module", autouse=True)
def base() -> None:
    missing = [name for name in ("buildah", "podman") if not shutil.which(name)]
    assert not missing, f"install {' and '.join(missing)}: the images are built and run with them"
    if subprocess.run(["buildah", "inspect", "--type=image", BASE], capture_output=True).returncode:
        call(str(ROOT / "tests/image/base.sh"), BASE, seconds=1200)


@pytest.fixture(scope="module")
def commit() -> str:
    """Commit of the checkout, before the build."""
    return call("git", "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def jobs(base: None, commit: str) -> str:
    build("image")
    return JOBS


@pytest.fixture(scope="module")
def server(base: None) -> str:
    build("mlflow-image")
    return SERVER


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    shutil.chown(folder, USER, USER)
    # Only root can enter pytest's folders.
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o711)
    return folder


def test_it_trains_with_only_tmp_and_state_writable(jobs: str, commit: str, state: Path) -> None:
    options = (f"--volume={state}:/state", "--env=MLFLOW_TRACKING_URI=sqlite:////state/mlflow.db")
    output = run(
        jobs, "train", "task2", "--data", "shapes", "--epochs", "1", "--run-key", "in-an-image", options=options
    )
    assert re.search(r"task2-seed0: 84 steps in \d+ s", output)
    assert {path.stat().st_uid for path in state.rglob("*")} == {USER}
    with sqlite3.connect(state / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        tags = dict(database.execute("select key, value from tags"))
    label = inspect(jobs)["Labels"]["org.opencontainers.image.revision"]
    assert tags["mlflow.source.git.commit"] == label == commit


def test_the_root_file_system_is_read_only_and_the_user_is_not_root(jobs: str, server: str) -> None:
    code = """
import errno, os
for path in ("/opt/venv/x", "/x", "/var/x", "/home/x"):
    try:
        open(path, "w")
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EACCES), error
    else:
        raise SystemExit(path)
open("/tmp/x", "w")
print(os.getuid(), os.getgid(), os.environ["PYTHONUNBUFFERED"])
"""
    for image in (jobs, server):
        assert python(image, code).split() == [str(USER), str(USER), "1"]
        assert inspect(image)["Config"]["User"] == f"{USER}:{USER}"
        # Without a mount; a tmpfs takes its mode from the folder.
        shown = call("podman", "run", "--rm", *RUN_PLAIN, "--entrypoint=stat", f"localhost/{image}", "-c%a %u", "/tmp")
        assert shown.split() == ["1777", "0"]


def test_bytecode_is_included(jobs: str) -> None:
    code = """
import importlib.util, pathlib
files = [p for p in pathlib.Path("/opt/venv").rglob("*.py")]
print(len(files), sum(pathlib.Path(importlib.util.cache_from_source(str(p))).exists() for p in files))
"""
    files, compiled = map(int, python(jobs, code).split())
    # The rest are templates, and files for other versions of Python.
    assert files > 5000
    assert compiled / files > 0.99


def test_nothing_of_the_build_remains(jobs: str, server: str) -> None:
    code = """
import pathlib, shutil
names = ["/etc/pip.conf", "/locks", "/wheel", "/source", "/opt/pip", "/opt/check.py"]
print([name for name in names if pathlib.Path(name).exists()], shutil.which("gcc"))
"""
    for image in (jobs, server):
        assert python(image, code).strip() == "[] None"
        history = call("podman", "history", "--no-trunc", "--format={{.CreatedBy}}", f"localhost/{image}")
        assert "secret" not in history.lower()


def test_a_code_change_is_a_small_layer(jobs: str, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    module = tree / "cnn_jobs/__main__.py"
    module.write_text(module.read_text() + "# changed\n")
    build("image", "IMAGE=cnn-jobs-test:changed", cwd=tree)
    try:
        before, after = layers(jobs), layers("cnn-jobs-test:changed")
        same = [old == new for old, new in zip(before, after, strict=True)]
        # Base, user, torch, packages; then the code, and a folder or two from the final check.
        assert same[:4] == [True] * 4
        assert same[4] is False
        history = json.loads(call("podman", "history", "--format=json", "localhost/cnn-jobs-test:changed"))
        sizes = [each["size"] for each in reversed(history) if each["size"]]
        assert len(sizes) == len(after)
        assert 0 < sum(sizes[4:]) < 5e6 < min(sizes[2:4])
    finally:
        call("buildah", "rmi", "localhost/cnn-jobs-test:changed")


def test_a_baked_in_data_set_is_the_default(jobs: str, tmp_path: Path, state: Path) -> None:
    tree = copy_tree(tmp_path)
    cnn_jobs = Path(ROOT / ".venv/bin/cnn-jobs")
    call(str(cnn_jobs), "data", "prepare", "shapes", str(tree / "shapes.npz"))
    build("image", "IMAGE=cnn-jobs-test:data", "DATA_FILE=shapes.npz", cwd=tree)
    try:
        assert "CNN_JOBS_DATA=/opt/data/prepared.npz" in inspect("cnn-jobs-test:data")["Config"]["Env"]
        assert "CNN_JOBS_DATA=" not in " ".join(inspect(jobs)["Config"]["Env"])
        options = (f"--volume={state}:/state", "--env=MLFLOW_TRACKING_URI=sqlite:////state/mlflow.db")
        run("cnn-jobs-test:data", "train", "task2", "--epochs", "1", options=options)
        with sqlite3.connect(state / "mlflow.db") as database:
            (source,) = database.execute("select dataset_source from datasets").fetchone()
        assert "/opt/data/prepared.npz" in source
    finally:
        call("buildah", "rmi", "localhost/cnn-jobs-test:data")


def test_the_cpu_variant_installs_torch_from_its_index_by_digest(base: None, tmp_path: Path, index: str) -> None:
    """Only its first stage, since the others are shared; with empty wheels in place of torch's."""
    tree, version = copy_tree(tmp_path), read(CUDA)["torch"].version
    tags = [f"torch=={version}+cpu \\\n    --hash=sha256:{wheel(tmp_path, 'torch', f'{version}+cpu', PLATFORM)}\n"]
    lock = tree / "k8s/image/torch-cpu.txt"
    lock.write_text("".join(tags))
    flags = ["--isolation=chroot", "--pull-never", "--target=torch", *shlex.split(BUILD_FLAGS)]
    words = ["buildah", "build", *flags, "--build-arg=VARIANT=cpu", f"--build-arg=TORCH_INDEX={index}"]
    call(*words, "--tag=cnn-jobs-test:cpu", ".", cwd=tree)
    try:
        found = run("cnn-jobs-test:cpu", "/opt/venv/lib/python3.11/site-packages", options=("--entrypoint=ls",))
        assert found.split() == [f"torch-{version}+cpu.dist-info"]
    finally:
        call("buildah", "rmi", "localhost/cnn-jobs-test:cpu")
    lock.write_text(lock.read_text().replace("sha256:", "sha256:0")[:-2] + "\n")
    ran = subprocess.run([*words, "."], cwd=tree, capture_output=True, text=True, timeout=300)
    assert ran.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ran.stdout + ran.stderr


@pytest.fixture
def running(server: str, state: Path) -> Iterator[int]:
    """Port of the Deployment's command in its image, on sqlite, with another port and address."""
    container, port, name = container_of(STACK, "Deployment/mlflow"), free_port(), f"cnn-jobs-test-{free_port()}"
    env = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    env |= {"POD_IP": "10.0.0.1", "MLFLOW_BACKEND_STORE_URI": "sqlite:////state/mlflow.db"}
    env |= {"MLFLOW_ARTIFACTS_DESTINATION": "/state/artifacts"}
    words = command(container, env, Path("/tmp"), host="127.0.0.1", port=str(port))
    options = [f"--env={key}={value}" for key, value in env.items()]
    options += [f"--name={name}", "--detach", "--entrypoint=", f"--volume={state}:/state", "--workdir=/tmp"]
    call(*RUN, *options, f"localhost/{server}", *words)
    try:
        yield port
    finally:
        subprocess.run(["podman", "stop", "--time=20", name], capture_output=True, timeout=60)


def test_the_server_starts_with_the_manifests_command(running: int) -> None:
    from http.client import HTTPConnection

    def answer(host: str) -> int:
        connection = HTTPConnection("127.0.0.1", running, timeout=20)
        try:
            connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    assert until(lambda: answer("mlflow:5000"), 180) == 200
    assert answer("evil.example") == 403


def test_the_server_has_the_packages_of_the_stack(server: str) -> None:
    code = "import boto3, prometheus_flask_exporter, psycopg; print(psycopg.pq.__impl__)"
    assert python(server, code).strip() == "binary"
    # As the CronJob calls it.
    assert "--older-than" in python(server, "from mlflow.cli import cli; cli(['gc', '--help'])")
