"""The locks satisfy setup.cfg, with digests and without index addresses."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.image.locks import CPU, CUDA, FOLDER, LOCKS, PACKAGES, ROOT, SERVER, entries, read
from tests.image.package_index import wheel

OF_TORCH = re.compile(r"torch(vision)?|triton|nvidia-.*|cuda-.*")


def requirements_of_setup_cfg() -> list[Requirement]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements_of_the_server() -> list[Requirement]:
    lines = (ROOT / "mlflow/requirements.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_packages_have_digests(path: Path) -> None:
    for pinned in read(path).values():
        assert pinned.hashes, pinned.name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in pinned.hashes), pinned.name


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_contain_no_address(path: Path) -> None:
    assert "://" not in path.read_text()
    assert all(re.match(r"[a-z0-9._-]+==", line) for line in entries(path))
    assert path.read_text().startswith("# Written by 'make lock")


@pytest.mark.parametrize("requirement", requirements_of_setup_cfg(), ids=str)
def test_the_image_satisfies_setup_cfg(requirement: Requirement) -> None:
    found = read(PACKAGES, CUDA)[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(found.version)


@pytest.mark.parametrize("requirement", requirements_of_the_server(), ids=str)
def test_the_server_satisfies_its_requirements(requirement: Requirement) -> None:
    server = read(SERVER)
    assert requirement.specifier.contains(server[canonicalize_name(requirement.name)].version)
    if "binary" in requirement.extras:
        assert server["psycopg-binary"].version == server["psycopg"].version


def test_torch_has_a_lock_of_its_own() -> None:
    """Two layers: one that seldom changes, and one that the CPU variant shares."""
    assert {name for name in read(CUDA) if not OF_TORCH.fullmatch(name)} == set()
    assert {name for name in read(PACKAGES) if OF_TORCH.fullmatch(name)} == set()
    assert {"torch", "torchvision", "triton"} < set(read(CUDA))
    # The build of the cnn-jobs wheel uses no index: its build back end is in the lock.
    assert "setuptools" in read(PACKAGES)


def test_jobs_and_server_have_equal_versions() -> None:
    jobs, server = read(PACKAGES), read(SERVER)
    assert {
        name: (jobs[name], server[name]) for name in jobs.keys() & server.keys() if jobs[name] != server[name]
    } == {}
    assert "mlflow" in server


def test_both_variants_have_the_same_torch() -> None:
    if not CPU.exists():
        pytest.skip("k8s/image/torch-cpu.txt does not exist: 'make lock-cpu' writes it")
    cpu, cuda = read(CPU), read(CUDA)
    assert {name: each.version.public for name, each in cpu.items()} == {
        name: cuda[name].version.public for name in ("torch", "torchvision")
    }
    assert {each.version.local for each in cpu.values()} == {"cpu"}


def lock_cpu(index: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script in a copy of the tree."""
    pytest.importorskip("uv")
    copy = folder / "copy/k8s/image"
    copy.mkdir(parents=True)
    for path in (FOLDER / "lock.py", CUDA):
        (copy / path.name).write_text(path.read_text())
    words = [sys.executable, str(copy / "lock.py"), "--cpu", index]
    env = {"PATH": "", "HOME": str(folder), "UV_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)


def test_the_lock_of_the_cpu_variant(index: str, tmp_path: Path) -> None:
    cuda = read(CUDA)
    digests = {
        wheel(tmp_path, name, f"{cuda[name].version}+cpu", platform)
        for name in ("torch", "torchvision")
        for platform in ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64")
    }
    wheel(tmp_path, "torch", "99.0+cpu", "manylinux_2_28_x86_64")
    ran = lock_cpu(index, tmp_path)
    assert ran.returncode == 0, ran.stderr
    path = tmp_path / "copy/k8s/image/torch-cpu.txt"
    found = read(path)
    assert {name: str(each.version) for name, each in found.items()} == {
        name: f"{cuda[name].version}+cpu" for name in ("torch", "torchvision")
    }
    assert {each.removeprefix("--hash=sha256:") for pinned in found.values() for each in pinned.hashes} == digests
    assert "127.0.0.1" not in path.read_text()


def test_no_lock_is_written_if_the_index_lacks_a_platform(index: str, tmp_path: Path) -> None:
    cuda = read(CUDA)
    for name in ("torch", "torchvision"):
        wheel(tmp_path, name, f"{cuda[name].version}+cpu", "manylinux_2_28_x86_64")
    ran = lock_cpu(index, tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "no lock written: uv ended with exit code 1"
    assert not (tmp_path / "copy/k8s/image/torch-cpu.txt").exists()
