"""This machine: device and driver, threads, shared memory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from cnn_jobs.doctor.finding import Finding, failed, from_error, ok, skipped, warning
from cnn_jobs.errors import DeviceError, from_os_error
from cnn_jobs.tracking.connection import first_line


def import_all() -> None:
    """One after another: of several threads that import the same packages, one may meet a half-made one."""
    for load in (_import_torch, _import_mlflow, _import_boto):
        try:
            load()
        except Exception:  # said by the checks that need it
            continue


def _import_torch() -> None:
    import torchvision.datasets  # noqa: F401

    import cnn_jobs.data.sources
    import cnn_jobs.models.weights
    import cnn_jobs.training.device  # noqa: F401


def _import_mlflow() -> None:
    from cnn_jobs.tracking import probe

    probe.prepare()


def _import_boto() -> None:
    import boto3  # noqa: F401


MIB = 1 << 20
# A run of task3e leaves 40 MB, one of task4a 250 MB beside its kept features.
FAILED_BYTES, WARNING_BYTES = 100 * 10**6, 2 * 10**9
FAILED_INODES, WARNING_INODES = 100, 1000
CHOOSE = "free some, or choose another disk by --state-dir"


def check_disk(folder: Path) -> Finding:
    """A file can be written in the state directory, and there is room for checkpoints. Leaves nothing behind."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_and_delete(folder)
            room = os.statvfs(folder)
        finally:
            for each in missing:
                with contextlib.suppress(OSError):
                    each.rmdir()
    except OSError as error:
        return from_error(from_os_error(error, folder), CHOOSE)
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail
    # btrfs and some network file systems make inodes as they go, and say 0 of 0.
    without_limit = room.f_files == 0
    size = f"{free / 1e9:.1f} GB" if free >= 10**9 else f"{free / 1e6:.1f} MB"
    found = f"{folder}: {size} and {'any number of' if without_limit else f'{inodes:,}'} inodes free"
    if free < FAILED_BYTES or (inodes < FAILED_INODES and not without_limit):
        least = f"{FAILED_BYTES / 1e6:.0f} MB and {FAILED_INODES} inodes are needed"
        return failed(f"{found}; at least {least}", CHOOSE)
    if free < WARNING_BYTES or (inodes < WARNING_INODES and not without_limit):
        few = f"{WARNING_BYTES / 1e9:.0f} GB and {WARNING_INODES:,} inodes"
        return warning(f"{found}: several runs need more than that, {few} are on the safe side", CHOOSE)
    return ok(found)


def write_and_delete(folder: Path) -> None:
    """Writes a block to a new file, brings it to the disk and deletes it. Raises ``OSError``."""
    path = folder / f"doctor-{uuid.uuid4().hex}"
    try:
        with path.open("xb") as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


# What Docker gives a container, and too little for NCCL or gloo to exchange large tensors through.
SHARED_MEMORY_BYTES = 64 * MIB
ENLARGE = "docker run --shm-size=1g; in a pod an emptyDir of medium Memory, mounted at /dev/shm"
DRIVER_S = 5.0


def check_device(
    wanted: str, devices: Path = Path("/dev"), proc: Path = Path("/proc/driver/nvidia/version")
) -> Finding:
    """The device that training takes, and whether a GPU that is here is one that torch can use."""
    import torch

    from cnn_jobs.training.device import select_device

    nodes = sorted(node.name for node in devices.glob("nvidia[0-9]*"))
    granted = _granted()
    driver = _driver(proc)
    build = f"torch {torch.__version__}, {'CUDA ' + torch.version.cuda if torch.version.cuda else 'built without CUDA'}"
    if wanted == "cpu":
        return ok(f"cpu, as asked for ({build})")
    if torch.cuda.is_available():
        return _try_cuda(build, driver)
    if nodes or granted:
        what = ", ".join([*(f"/dev/{node}" for node in nodes), *granted])
        return failed(f"a GPU is here ({what}; {driver}), but torch cannot use it: {_why_not()} ({build})", _remedy())
    try:
        select_device(wanted)
    except DeviceError as error:
        return from_error(error, "use --device cpu")
    of_image = os.environ.get("NVIDIA_VISIBLE_DEVICES") == "all"
    note = "; NVIDIA_VISIBLE_DEVICES=all is the image's, it grants none" if of_image else ""
    return ok(f"cpu, no GPU here ({build}{note})")


def check_threads(wanted: int, cgroup: Path = Path("/sys/fs/cgroup")) -> Finding:
    """The threads of torch against the CPUs that this process may use; 0: as many as these."""
    from cnn_jobs.training.device import available_threads

    available = available_threads(cgroup)
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    limit = f"{available} CPUs" if available == cpus else f"{available} CPUs by the cgroup's quota, of {cpus}"
    openmp = os.environ.get("OMP_NUM_THREADS", "")
    note = f"; OMP_NUM_THREADS={openmp} does not count: --threads does" if openmp not in ("", str(available)) else ""
    if wanted > available:
        return warning(
            f"{wanted} threads for {limit}{note}",
            f"--threads {available} (CNN_JOBS_THREADS), or 0: more than there are CPUs wait for each other",
        )
    return ok(f"{wanted or available} threads for {limit}{note}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Processes of one machine (DDP) exchange through it; one process alone needs none."""
    if not sys.platform.startswith("linux"):
        return skipped("only Linux has /dev/shm")
    if not folder.is_dir():
        return failed(f"{folder} is not there", f"mount it: {ENLARGE}")
    try:
        write_and_delete(folder)
    except OSError as error:
        return failed(f"{folder} cannot be written ({error.strerror})", f"mount it writable: {ENLARGE}")
    room = os.statvfs(folder)
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    found = f"{folder}: {free / MIB:.0f} MiB free of {size / MIB:.0f}"
    if free < SHARED_MEMORY_BYTES:
        return warning(
            f"{found}, less than {SHARED_MEMORY_BYTES / MIB:.0f}: too little for several processes (DDP)",
            f"enlarge it: {ENLARGE}",
        )
    return ok(found)


def _granted() -> list[str]:
    """Variables by which this process was given certain GPUs; ``all`` is in many images, also where there is none."""
    nothing = {
        "NVIDIA_VISIBLE_DEVICES": ("", "all", "none", "void"),
        "CUDA_VISIBLE_DEVICES": ("", "-1", "none", "NoDevFiles"),
    }
    values = {name: os.environ.get(name, "") for name in nothing}
    return [f"{name}={value}" for name, value in values.items() if value not in nothing[name]]


def _driver(proc: Path) -> str:
    """Driver and GPUs as nvidia-smi tells them, else the driver as the kernel does."""
    command = shutil.which("nvidia-smi")
    if command:
        query = [command, "--query-gpu=driver_version,name", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_S, check=False)
            lines = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().splitlines()
            return f"{'driver' if done.returncode == 0 else 'nvidia-smi says'} {' / '.join(lines)[:200] or 'nothing'}"
    with contextlib.suppress(OSError):
        version = re.search(r"Kernel Module\D*([\d.]+)", proc.read_text())
        return f"driver {version[1] if version else 'unknown'}"
    return "no driver"


def _try_cuda(build: str, driver: str) -> Finding:
    import torch

    try:
        name = torch.cuda.get_device_name(0)
        total = float(torch.ones(8, device="cuda").sum())
    except Exception as error:  # CUDA's own, of many kinds
        return failed(f"the GPU does not compute: {first_line(error)} ({build}; {driver})", _remedy())
    if total != 8:
        return failed(f"the GPU computes wrongly: 8 ones are {total} ({build}; {driver})", "take it out of use")
    return ok(f"{torch.cuda.device_count()} x {name} ({build}; {driver})")


def _why_not() -> str:
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # AssertionError without CUDA, RuntimeError without a driver
        return first_line(error)
    return "it finds none"


def _remedy() -> str:
    import torch

    if torch.version.cuda is None:
        return "install torch with CUDA (pip install torch from download.pytorch.org/whl/cu130), or use --device cpu"
    return (
        f"install a driver for CUDA {torch.version.cuda}, or give the container the GPU (--gpus all); else --device cpu"
    )
