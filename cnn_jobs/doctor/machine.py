"""This machine: GPU and driver, CPU threads, shared memory, disk, installed packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jobs.doctor.finding import Finding, failed, from_error, ok, skipped, warning
from cnn_jobs.errors import DeviceError, first_line, from_os_error
from cnn_jobs.system.environment import version_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.version import Version

DRIVER_S = 5.0
# Variables that grant a process certain GPUs, with the values that grant none; many images set 'all' without a GPU.
GRANTS = {
    "NVIDIA_VISIBLE_DEVICES": ("", "all", "none", "void"),
    "CUDA_VISIBLE_DEVICES": ("", "-1", "none", "NoDevFiles"),
}


def check_device(
    wanted: str, devices: Path = Path("/dev"), proc: Path = Path("/proc/driver/nvidia/version")
) -> Finding:
    """The device that training selects, and whether torch can use a GPU of this machine."""
    import torch

    from cnn_jobs.training.device import select_device

    nodes = [str(Path("/dev", node.name)) for node in sorted(devices.glob("nvidia[0-9]*"))]
    granted = [f"{name}={os.environ[name]}" for name in GRANTS if os.environ.get(name, "") not in GRANTS[name]]
    driver = _driver(proc)
    build = f"torch {torch.__version__}, {'CUDA ' + torch.version.cuda if torch.version.cuda else 'built without CUDA'}"
    if wanted == "cpu":
        return ok(f"cpu, as requested ({build})")
    if torch.cuda.is_available():
        return _try_cuda(build, driver)
    if nodes or granted:
        what = ", ".join([*nodes, *granted])
        return failed(
            f"a GPU is here ({what}; {driver}), but torch cannot use it: {_cuda_error()} ({build})", _cuda_remedy()
        )
    try:
        select_device(wanted)
    except DeviceError as error:
        return from_error(error, "use --device cpu")
    of_image = os.environ.get("NVIDIA_VISIBLE_DEVICES") == "all"
    note = "; NVIDIA_VISIBLE_DEVICES=all comes from the image and grants none" if of_image else ""
    return ok(f"cpu, no GPU here ({build}{note})")


def check_threads(wanted: int, cgroup: Path = Path("/sys/fs/cgroup")) -> Finding:
    """torch's threads against the CPUs that this process may use; 0: one per CPU."""
    from cnn_jobs.training.device import available_threads

    available = available_threads(cgroup)
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    limit = f"{available} CPUs" if available == cpus else f"{available} CPUs by the cgroup's quota, of {cpus}"
    openmp = os.environ.get("OMP_NUM_THREADS", "")
    note = f"; OMP_NUM_THREADS={openmp} does not count: --threads does" if openmp not in ("", str(available)) else ""
    found = f"{wanted or available} threads for {limit}{note}"
    if wanted > available:
        return warning(found, f"--threads {available} (CNN_JOBS_THREADS), or 0: additional threads wait for each other")
    return ok(found)


MIB = 1 << 20
# Docker's default, too small for NCCL or gloo to exchange large tensors.
SHARED_MEMORY_BYTES = 64 * MIB
ENLARGE = "docker run --shm-size=1g; in a pod an emptyDir of medium Memory, mounted at /dev/shm"


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, through which the processes of one machine (DDP) communicate; a single process needs none."""
    if not sys.platform.startswith("linux"):
        return skipped("only Linux has /dev/shm")
    if not folder.is_dir():
        return failed(f"{folder} does not exist", f"mount it: {ENLARGE}")
    try:
        _write_and_delete(folder)
    except OSError as error:
        return failed(f"{folder} cannot be written ({error.strerror})", f"mount it writable: {ENLARGE}")
    usage = shutil.disk_usage(folder)
    found = f"{folder}: {usage.free / MIB:.0f} MiB free of {usage.total / MIB:.0f}"
    if usage.free < SHARED_MEMORY_BYTES:
        return warning(
            f"{found}, less than {SHARED_MEMORY_BYTES / MIB:.0f}: too little for several processes (DDP)",
            f"enlarge it: {ENLARGE}",
        )
    return ok(found)


# A run of task3e leaves 40 MB of state, one of task4a 250 MB beside its cached features.
FAILED_BYTES, WARNING_BYTES = 100 * 10**6, 2 * 10**9
FAILED_INODES, WARNING_INODES = 100, 1000
CHOOSE = "free some, or choose another disk by --state-dir"


def check_disk(folder: Path) -> Finding:
    """The state directory is writable and has room for checkpoints. Removes everything that it creates."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_and_delete(folder)
            room = os.statvfs(folder)
        finally:
            for each in missing:
                with contextlib.suppress(OSError):
                    each.rmdir()
    except OSError as error:
        return from_error(from_os_error(error, folder), CHOOSE)
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail
    # btrfs and some network file systems create inodes on demand, and report 0 of 0.
    unlimited = room.f_files == 0
    size = f"{free / 1e9:.1f} GB" if free >= 10**9 else f"{free / 1e6:.1f} MB"
    found = f"{folder}: {size} and {'any number of' if unlimited else f'{inodes:,}'} inodes free"
    if free < FAILED_BYTES or (inodes < FAILED_INODES and not unlimited):
        return failed(f"{found}; at least {FAILED_BYTES / 1e6:.0f} MB and {FAILED_INODES} inodes are needed", CHOOSE)
    if free < WARNING_BYTES or (inodes < WARNING_INODES and not unlimited):
        safe = f"{WARNING_BYTES / 1e9:.0f} GB and {WARNING_INODES:,} inodes"
        return warning(f"{found}: several runs need more than that, {safe} are on the safe side", CHOOSE)
    return ok(found)


def _write_and_delete(folder: Path) -> None:
    """Writes a new file, syncs it and deletes it. Raises ``OSError``."""
    path = folder / f"doctor-{uuid.uuid4().hex}"
    try:
        with path.open("xb") as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _driver(proc: Path) -> str:
    """Driver and GPUs as nvidia-smi reports them, else the driver as the kernel does."""
    if command := shutil.which("nvidia-smi"):
        query = [command, "--query-gpu=driver_version,name", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_S, check=False)
            prefix, output = ("nvidia-smi:", done.stdout + done.stderr) if done.returncode else ("driver", done.stdout)
            return f"{prefix} {' / '.join(output.strip().splitlines())[:200] or 'no output'}"
    with contextlib.suppress(OSError):
        version = re.search(r"Kernel Module\D*([\d.]+)", proc.read_text())
        return f"driver {version[1] if version else 'unknown'}"
    return "no driver"


def _try_cuda(build: str, driver: str) -> Finding:
    import torch

    try:
        name = torch.cuda.get_device_name(0)
        total = float(torch.ones(8, device="cuda").sum())
    except Exception as error:  # CUDA raises many kinds
        return failed(f"the GPU does not compute: {first_line(error)} ({build}; {driver})", _cuda_remedy())
    if total != 8:
        return failed(f"the GPU computes wrongly: 8 ones are {total} ({build}; {driver})", "take it out of use")
    return ok(f"{torch.cuda.device_count()} x {name} ({build}; {driver})")


def _cuda_error() -> str:
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # AssertionError without CUDA, RuntimeError without a driver
        return first_line(error)
    return "it finds none"


def _cuda_remedy() -> str:
    import torch

    if torch.version.cuda is None:
        return "install torch with CUDA (pip install torch from download.pytorch.org/whl/cu130), or use --device cpu"
    return (
        f"install a driver for CUDA {torch.version.cuda}, or give the container the GPU (--gpus all); else --device cpu"
    )


# -- installed packages ------------------------------------------------------------------------------------------------

PACKAGE = "cnn-jobs"
# Packages that results depend on, listed even if all is well.
SHOWN = ("torch", "torchvision", "mlflow", "numpy")


def check_versions(package: str = PACKAGE) -> Finding:
    """Python and each package are in the range that ``package`` declares."""
    from packaging.specifiers import SpecifierSet

    try:
        declared, metadata = requirements(package), importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return skipped(f"{package} is not installed, only its source exists: no ranges are declared")
    python = metadata["Requires-Python"] or ""
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        return failed(f"python is {platform.python_version()}, but must be {python}", "use another Python")
    wrong = {each: fault for each in declared if (fault := _fault(each))}
    if wrong:
        needed = " ".join(f"'{each.name}{each.specifier}'" for each in wrong)
        return failed("; ".join(wrong.values()), f"pip install {needed}")
    installed = [f"{name} {version}" for name in SHOWN if (version := version_of(name))]
    versions = ", ".join([f"{package} {metadata['Version']}", f"python {platform.python_version()}", *installed])
    return ok(f"{versions}; all {len(declared)} requirements are met")


def lowest_version(name: str, package: str = PACKAGE) -> Version | None:
    """The lowest version of ``name`` that ``package`` accepts; ``None`` if it declares none, or is not installed."""
    from packaging.version import Version

    try:
        declared = requirements(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    parts = [part for each in declared if each.name == name for part in each.specifier]
    return min((Version(part.version) for part in parts if part.operator in (">=", "~=")), default=None)


def requirements(package: str) -> list[Requirement]:
    """Declared requirements, without those of extras and of other systems. Raises ``PackageNotFoundError``."""
    from packaging.requirements import Requirement

    declared = map(Requirement, importlib.metadata.requires(package) or [])
    return [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]


def _fault(required: Requirement) -> str:
    found = version_of(required.name)
    if not found:
        return f"{required.name} is missing"
    if not required.specifier.contains(found, prereleases=True):
        return f"{required.name} {found} is not {required.specifier}"
    return ""
