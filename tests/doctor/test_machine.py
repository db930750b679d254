from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from cnn_jobs.doctor import machine
from cnn_jobs.doctor.machine import check_versions, lowest_version

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that works")
Mount = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


def cgroup(folder: Path, quota: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cpu.max").write_text(f"{quota} 100000\n")
    return folder


@no_gpu
def test_no_gpu(nowhere: Path) -> None:
    finding = machine.check_device("auto", nowhere, nowhere / "none")
    assert finding.status == "ok"
    assert finding.found.startswith(f"cpu, no GPU here (torch {torch.__version__}, ")
    assert machine.check_device("cpu", nowhere).found.startswith("cpu, as requested")


@no_gpu
def test_a_requested_gpu_that_is_missing(nowhere: Path) -> None:
    finding = machine.check_device("cuda", nowhere, nowhere / "none")
    assert (finding.status, finding.found) == ("failed", "device is cuda, but torch finds no CUDA device")
    assert "--device cpu" in finding.advice


@no_gpu
def test_a_gpu_that_torch_cannot_use(nowhere: Path) -> None:
    (nowhere / "nvidia0").touch()
    (nowhere / "nvidiactl").touch()
    version = nowhere / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n")
    finding = machine.check_device("auto", nowhere, version)
    assert finding.status == "failed"
    assert "a GPU is here (/dev/nvidia0; driver 535.104.05), but torch cannot use it: " in finding.found
    reasons = ("Torch not compiled with CUDA enabled", "no NVIDIA driver", "driver")
    assert any(reason in finding.found.partition("cannot use it: ")[2] for reason in reasons)
    assert "--device cpu" in finding.advice
    assert machine.check_device("cpu", nowhere, version).status == "ok"


@no_gpu
@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("NVIDIA_VISIBLE_DEVICES", "GPU-5a3b", "failed"),
        ("CUDA_VISIBLE_DEVICES", "0,1", "failed"),
        ("CUDA_VISIBLE_DEVICES", "-1", "ok"),
        ("NVIDIA_VISIBLE_DEVICES", "all", "ok"),
        ("NVIDIA_VISIBLE_DEVICES", "void", "ok"),
    ],
)
def test_a_gpu_granted_by_a_variable(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: str
) -> None:
    monkeypatch.setenv(name, value)
    finding = machine.check_device("auto", nowhere, nowhere / "none")
    assert finding.status == status
    assert (f"{name}={value}; no driver" in finding.found) == (status == "failed")


@no_gpu
def test_the_error_of_nvidia_smi_is_repeated(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = nowhere / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    program.chmod(0o755)
    (nowhere / "nvidia0").touch()
    monkeypatch.setenv("PATH", f"{nowhere}:{os.environ['PATH']}")
    found = machine.check_device("auto", nowhere, nowhere / "none").found
    assert "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch" in found


@pytest.mark.gpu
def test_a_working_gpu() -> None:
    finding = machine.check_device("auto")
    assert finding.status == "ok"
    assert torch.cuda.get_device_name(0) in finding.found


def test_default_threads(tmp_path: Path) -> None:
    finding = machine.check_threads(0, cgroup(tmp_path / "c", "100000"))
    assert finding.status == "ok"
    assert finding.found.startswith("1 threads for 1 CPUs")


def test_more_threads_than_cpus(tmp_path: Path) -> None:
    finding = machine.check_threads(8, cgroup(tmp_path / "c", "150000" if os.cpu_count() != 1 else "100000"))
    assert finding.status == "warning"
    assert finding.found.startswith("8 threads for ")
    assert "--threads " in finding.advice


def test_a_quota_is_reported(tmp_path: Path) -> None:
    cpus = len(os.sched_getaffinity(0))
    if cpus == 1:
        pytest.skip("a quota below one CPU is rounded up")
    found = machine.check_threads(0, cgroup(tmp_path / "c", "50000")).found
    assert found == f"1 threads for 1 CPUs by the cgroup's quota, of {cpus}"


def test_omp_num_threads_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    finding = machine.check_threads(0, cgroup(tmp_path / "c", "max"))
    assert (finding.status, "OMP_NUM_THREADS=64 does not count" in finding.found) == ("ok", True)


def test_enough_shared_memory(mounted: Mount) -> None:
    folder = mounted("size=64m")
    finding = machine.check_shared_memory(folder)
    assert (finding.status, finding.found) == ("ok", f"{folder}: 64 MiB free of 64")
    assert list(folder.iterdir()) == []


def test_small_or_used_shared_memory(mounted: Mount) -> None:
    assert machine.check_shared_memory(mounted("size=16m")).status == "warning"
    folder = mounted("size=128m")
    (folder / "taken").write_bytes(b"x" * (100 << 20))
    finding = machine.check_shared_memory(folder)
    assert (finding.status, "28 MiB free of 128" in finding.found) == ("warning", True)
    assert "--shm-size" in finding.advice


def test_read_only_shared_memory(mounted: Mount) -> None:
    folder = mounted("size=128m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    finding = machine.check_shared_memory(folder)
    assert (finding.status, "cannot be written (Read-only file system)" in finding.found) == ("failed", True)


def test_no_shared_memory(tmp_path: Path) -> None:
    finding = machine.check_shared_memory(tmp_path / "none")
    assert (finding.status, finding.found) == ("failed", f"{tmp_path / 'none'} does not exist")


def test_a_disk_with_room(mounted: Mount) -> None:
    folder = mounted("size=3g,nr_inodes=5000")
    finding = machine.check_disk(folder)
    assert finding.status == "ok"
    assert finding.found.startswith(f"{folder}: 3.2 GB and 4,9")


def test_a_missing_folder_is_created_and_removed_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert str(folder) in machine.check_disk(folder).found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    machine.check_disk(folder)
    assert [each.name for each in tmp_path.rglob("*")] == ["a"]


def test_a_disk_with_little_room(mounted: Mount) -> None:
    finding = machine.check_disk(mounted("size=1g"))
    assert finding.status == "warning"
    assert "1.1 GB and" in finding.found
    assert "--state-dir" in finding.advice


def test_a_disk_with_too_little_room(mounted: Mount) -> None:
    finding = machine.check_disk(mounted("size=50m"))
    assert (finding.status, "52.4 MB and" in finding.found) == ("failed", True)


def test_a_full_disk(mounted: Mount) -> None:
    folder = mounted("size=64k")
    (folder / "full").write_bytes(b"x" * 65536)
    finding = machine.check_disk(folder / "state")
    assert (finding.status, "no space left on the device" in finding.found) == ("failed", True)
    assert [each.name for each in folder.iterdir()] == ["full"]


@pytest.mark.parametrize(("inodes", "status"), [(20, "failed"), (500, "warning")])
def test_few_inodes(mounted: Mount, inodes: int, status: str) -> None:
    finding = machine.check_disk(mounted(f"size=3g,nr_inodes={inodes}"))
    assert finding.status == status
    assert f"{inodes - 1} inodes free" in finding.found  # one is the folder's own


def test_no_inode_left(mounted: Mount) -> None:
    folder = mounted("size=3g,nr_inodes=3")
    for name in ("a", "b"):
        (folder / name).touch()
    finding = machine.check_disk(folder)
    assert (finding.status, "no space left" in finding.found) == ("failed", True)


def test_a_file_system_without_inode_limit(mounted: Mount) -> None:
    folder = mounted("size=3g,nr_inodes=0")
    assert os.statvfs(folder).f_files == 0
    finding = machine.check_disk(folder)
    assert (finding.status, "any number of inodes" in finding.found) == ("ok", True)


def test_a_read_only_disk(mounted: Mount) -> None:
    folder = mounted("size=3g")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    finding = machine.check_disk(folder)
    assert (finding.status, "Read-only file system" in finding.found) == ("failed", True)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    finding = machine.check_disk(tmp_path / "file" / "state")
    assert (finding.status, "Not a directory" in finding.found) == ("failed", True)
    assert finding.advice


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Installs a distribution with these requirements; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*needs: str, python: str = ">=3") -> str:
        folder = tmp_path / "some_service-1.2.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: some-service", "Version: 1.2", f"Requires-Python: {python}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {each}" for each in needs)]) + "\n")
        return "some-service"

    return make


def test_the_requirements_of_this_package_are_met() -> None:
    finding = check_versions()
    assert finding.status == "ok"
    for name in ("torch", "torchvision", "mlflow", "numpy"):
        assert f"{name} {version(name)}" in finding.found
    assert f"python {platform.python_version()}" in finding.found


def test_a_package_outside_its_range_and_a_missing_one(package: Callable[..., str]) -> None:
    finding = check_versions(package("numpy<1", "no-such-package-anywhere>=2", "click>=8"))
    assert finding.status == "failed"
    assert finding.found == f"numpy {version('numpy')} is not <1; no-such-package-anywhere is missing"
    assert finding.advice == "pip install 'numpy<1' 'no-such-package-anywhere>=2'"


def test_another_python(package: Callable[..., str]) -> None:
    finding = check_versions(package(python="<3"))
    assert (finding.status, finding.found) == ("failed", f"python is {platform.python_version()}, but must be <3")


def test_extras_and_other_systems_do_not_count(package: Callable[..., str]) -> None:
    finding = check_versions(package('nothing-a; extra == "test"', 'nothing-b; sys_platform == "win32"'))
    assert finding.status == "ok"
    assert "all 0 requirements are met" in finding.found


def test_a_package_that_is_not_installed() -> None:
    assert check_versions("no-such-package-anywhere").status == "skipped"
    assert lowest_version("mlflow", "no-such-package-anywhere") is None


def test_the_lowest_version(package: Callable[..., str]) -> None:
    name = package("mlflow>=3.17,<3.18")
    assert str(lowest_version("mlflow", name)) == "3.17"
    assert lowest_version("torch", name) is None
