"""The Dockerfiles agree with the program and with the manifests that run the images."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_jobs import __version__
from cnn_jobs.cluster import pod
from tests.helpers.job_files import PATHS
from tests.helpers.kustomize import STACK, build, pods
from tests.image.locks import ROOT

JOBS, SERVER = ROOT / "Dockerfile", ROOT / "mlflow/Dockerfile"
FILES = [JOBS, SERVER]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, with continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def values(path: Path, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(path) if word == keyword]


def environment(path: Path) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in values(path, "ENV") for pair in re.findall(r"\S+=\S*", rest))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hadolint(path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"
    ran = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_hadolint_detects_errors(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(JOBS.read_text().replace('["cnn-jobs"]', "cnn-jobs"))
    program = Path(sys.executable).parent / "hadolint"
    ran = subprocess.run([program, str(tmp_path / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "DL3025" in ran.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_user_and_exec_entrypoint(path: Path) -> None:
    assert values(path, "USER") == [f"{pod.USER}:{pod.USER}"]
    assert values(path, "WORKDIR") == [pod.SCRATCH]
    assert re.search(rf"--uid {pod.USER} --gid {pod.USER} ", path.read_text())
    (entrypoint,) = values(path, "ENTRYPOINT")
    assert json.loads(entrypoint) == [{JOBS: "cnn-jobs", SERVER: "mlflow"}[path]]
    assert environment(path)["PYTHONUNBUFFERED"] == "1"
    assert environment(path)["HOME"] == pod.SCRATCH


def test_manifests_of_the_server_have_the_same_user() -> None:
    specs = [each.spec for each in pods(build(STACK)) if "mlflow" in each.spec["containers"][0]["image"]]
    assert len(specs) == 2
    assert {(spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) for spec in specs} == {
        (pod.USER, pod.USER)
    }


def test_version_base_and_folders() -> None:
    assert f"VERSION={__version__}" in values(JOBS, "ARG")
    for path in FILES:
        assert "BASE=docker.io/library/python:3.11-slim" in values(path, "ARG")
        assert [rest for rest in values(path, "FROM") if rest.startswith("${BASE}")]
    assert re.search(rf"--owner={pod.USER} --group={pod.USER} {pod.DATA} {pod.STATE} *$", JOBS.read_text(), re.M)
    assert environment(JOBS)["CNN_JOBS_STATE_DIR"] == pod.STATE


def test_variables_are_read_by_the_program() -> None:
    ours = {name for name in environment(JOBS) if name.startswith("CNN_JOBS_")}
    assert {"CNN_JOBS_GIT_COMMIT", "CNN_JOBS_GIT_DIRTY", "CNN_JOBS_DATA", "CNN_JOBS_STATE_DIR"} == ours
    help_ = subprocess.run(
        [sys.executable, "-m", "cnn_jobs", "train", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    code = "".join(path.read_text() for path in (ROOT / "cnn_jobs").rglob("*.py"))
    assert [name for name in ours if name not in help_ and f'"{name}"' not in code] == []


def test_dependencies_are_pinned_and_before_the_code() -> None:
    for path, locks in ((JOBS, 2), (SERVER, 1)):
        installs = [rest for rest in values(path, "RUN") if "--requirement" in rest]
        assert len(installs) == locks
        for rest in installs:
            assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(rest.split())
    final = JOBS.read_text().split(" AS image\n")[1]
    assert re.findall(r"COPY --from=(\w+)", final) == ["torch", "packages", "application"]
    # Arguments that change with every commit come after all layers.
    assert final.index("ARG GIT_COMMIT") > final.rindex("RUN --mount") > final.rindex("COPY --from=")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_host_of_this_machine_is_mentioned(path: Path) -> None:
    hosts = set(re.findall(r"https?://([^/\s]+)", path.read_text()))
    assert hosts <= {"download.pytorch.org"}
    assert "PIP_INDEX_URL" not in path.read_text()


def admitted(name: str, folder: Path) -> bool:
    """Whether a file reaches the builder, by the last matching rule of .dockerignore."""
    verdict = True
    for line in (folder / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("/")
            parts = name.split("/")
            whole = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
            anywhere = pattern.removeprefix("**/")
            fits = anywhere != pattern and any(fnmatch.fnmatchcase(part, anywhere) for part in parts)
            if fits or any(
                part.count("/") == pattern.count("/") and fnmatch.fnmatchcase(part, pattern) for part in whole
            ):
                verdict = line.startswith("!")
    return verdict


def tracked(folder: str) -> list[str]:
    ran = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_dockerignore_admits_exactly_what_is_copied() -> None:
    for name in ["cnn_jobs/cli/__init__.py", "setup.cfg", "LICENSE", "README.md", "k8s/image/packages.txt", "d.npz"]:
        assert admitted(name, ROOT), name
    for name in [
        ".git/config",
        ".local/mlflow.db",
        ".venv/bin/python",
        "mlflow/.env",
        "tests/conftest.py",
        "k8s/stack/mlflow.yaml",
        "cnn_jobs/__pycache__/job.cpython-311.pyc",
        "mlflow.db",
    ]:
        assert not admitted(name, ROOT), name
    sources = [
        word.replace("${VARIANT}", "cuda")
        for rest in values(JOBS, "COPY")
        if not rest.startswith("--from")
        for word in rest.split()[:-1]
        if "DATA_FILE" not in word
    ]
    assert {"setup.cfg", "cnn_jobs", "k8s/image/torch-cuda.txt"} <= set(sources)
    for source in sources:
        assert tracked(source), source
        assert all(admitted(name, ROOT) for name in tracked(source)), source
    assert admitted("requirements.txt", ROOT / "mlflow")
    assert not admitted(".env", ROOT / "mlflow")


def test_manifests_and_makefile_name_the_same_images() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (server,) = re.findall(r"^MLFLOW_IMAGE = (\S+)$", makefile, re.M)
    named = {each["image"] for found in pods(build(STACK)) for each in found.containers}
    assert {image for image in named if "cnn-jobs" in image} == {server, f"cnn-jobs:{__version__}"}
    assert all(f"image: cnn-jobs:{__version__}\n" in path.read_text() for path in PATHS)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"IMAGE=cnn-jobs:{__version__}," in shown
    (version,) = (rest.split("=")[1] for rest in values(SERVER, "ARG") if rest.startswith("VERSION="))
    assert re.fullmatch(rf"cnn-jobs-mlflow:{re.escape(version)}-\d+", server)
    assert f"mlflow=={version}\n" in (ROOT / "mlflow/requirements.in").read_text()
