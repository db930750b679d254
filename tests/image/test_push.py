"""'make image-push' to a registry (Debian's docker-registry), with images of one file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from cnn_jobs.local_server.server import free_port
from tests.helpers.waiting import until
from tests.image.containers import call
from tests.image.locks import ROOT

pytestmark = pytest.mark.image


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    program, port = shutil.which("docker-registry"), free_port()
    if not program:
        pytest.skip("docker-registry is not installed")
    settings = tmp_path / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    settings.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}))
    process = subprocess.Popen([program, "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return bool(urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5).status == 200)
        except URLError:
            return False

    try:
        until(answers)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("builder", ["buildah", "podman"])
def test_both_images_are_pushed_to_the_registry(registry: str, tmp_path: Path, builder: str) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/file").write_text("x")
    (tmp_path / "content/Dockerfile").write_text("FROM scratch\nCOPY file /file\n")
    names = ["cnn-jobs-test:1", "cnn-jobs-mlflow-test:2"]
    call("buildah", "build", *(f"--tag={name}" for name in names), str(tmp_path / "content"))
    plain = tmp_path / "registries.conf"
    plain.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    words = ["make", "image-push", f"BUILDER={builder}", f"REGISTRY={registry}/team"]
    words += [f"IMAGE={names[0]}", f"MLFLOW_IMAGE={names[1]}"]
    env = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    env["CONTAINERS_REGISTRIES_CONF"] = str(plain)
    try:
        ran = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        for name in names:
            image, tag = name.split(":")
            with urlopen(f"http://{registry}/v2/team/{image}/tags/list", timeout=10) as answer:
                assert json.load(answer) == {"name": f"team/{image}", "tags": [tag]}
    finally:
        pushed = [f"{registry}/team/{name}" for name in names]
        call("buildah", "rmi", *(f"localhost/{name}" for name in names), *pushed)
