"""Builds the images and runs them as a pod does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.image.locks import ROOT

BASE = "docker.io/library/python:3.11-slim"
# Set by 'make image-test BUILD_FLAGS=', for this machine's package index.
BUILD_FLAGS = os.environ.get("IMAGE_BUILD_FLAGS", "")
USER = 10001
# As in the manifests. The limits are small, so that every machine may set them; runc supports all kinds of cgroups.
RUN = ["podman", "run", "--rm", "--network=host", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp"]
RUN += ["--cap-drop=all", "--security-opt=no-new-privileges", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]
RUN += [f"--user={USER}:{USER}", *(["--runtime=runc"] if shutil.which("runc") else [])]


def call(*words: str, cwd: Path = ROOT, seconds: float = 600) -> str:
    """Output of a command; a failure has its end in the message."""
    env = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    ran = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def build(target: str, *settings: str, cwd: Path = ROOT) -> None:
    """Runs ``make image`` or ``make mlflow-image`` without pulling."""
    flags = f"BUILD_FLAGS=--isolation chroot --pull-never {BUILD_FLAGS}"
    call("make", "--no-print-directory", target, "BUILDER=buildah", flags, *settings, cwd=cwd, seconds=3000)


def run(image: str, *arguments: str, options: tuple[str, ...] = (), seconds: float = 600) -> str:
    """Output of a container."""
    return call(*RUN, *options, f"localhost/{image}", *arguments, seconds=seconds)


def python(image: str, code: str, *options: str) -> str:
    """Output of Python code in a container."""
    return run(image, "-c", code, options=("--entrypoint=python", *options))


def inspect(image: str) -> dict[str, Any]:
    """Configuration and layers of an image."""
    found: dict[str, Any] = json.loads(call("podman", "image", "inspect", f"localhost/{image}"))[0]
    return found


def layers(image: str) -> list[str]:
    """Digests of the layers, those of the base first."""
    found: list[str] = inspect(image)["RootFS"]["Layers"]
    return found


def copy_tree(folder: Path) -> Path:
    """Copies the checkout with modification times, on which the builder's cache depends."""
    tree = folder / "tree"
    for name in call("git", "ls-files").split("\n"):
        if name and (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree
