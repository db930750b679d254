"""The device that trains, its memory and threads, and deterministic arithmetic."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from cnn_jobs.errors import DeviceError
from cnn_jobs.system.environment import cpu_name


@dataclass(frozen=True)
class Placement:
    """A device and the memory format in which its convolutions are fastest."""

    device: torch.device
    memory_format: torch.memory_format


def select_device(wanted: str, *, fast: bool = False, index: int = 0) -> Placement:
    """``auto`` is CUDA where available, else the CPU. CUDA device number ``index`` becomes the current one.

    channels_last is up to twice as fast on a CPU (docs/performance.md). On CUDA only ``fast`` uses it: there the
    backward pass of overlapping max pooling adds atomically. Raises ``DeviceError`` for a CUDA device that does not
    exist.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device is cuda, but torch finds no CUDA device; use --device cpu or check the driver")
    name = "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"
    if name == "cuda" and index:
        if index >= torch.cuda.device_count():
            raise DeviceError(
                f"LOCAL_RANK is {index}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                "start one process a device"
            )
        torch.cuda.set_device(index)
    channels_last = name == "cpu" or fast
    return Placement(torch.device(name), torch.channels_last if channels_last else torch.contiguous_format)


def device_name(device: torch.device) -> str:
    """The device's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({cpu_name()})"


def configure_arithmetic(threads: int, *, fast: bool = False) -> None:
    """Sets torch's threads and, unless ``fast``, deterministic algorithms, for the whole process."""
    torch.set_num_threads(threads)
    # cuBLAS reads it when it creates its first handle; :4096:8 is one of the two deterministic values.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(not fast)
    # Filling new tensors only reveals reads of uninitialised memory, and costs time at each allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = not fast
    torch.backends.cudnn.benchmark = fast
    torch.backends.cuda.matmul.allow_tf32 = fast
    torch.backends.cudnn.allow_tf32 = fast


def available_threads(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: its affinity, limited by the cgroup's quota (version 2 or 1), at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return max(1, min(cpus, math.ceil(quota))) if quota else cpus


def available_memory(device: torch.device, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still allocate: on CUDA what is free on the device, else what the machine has
    available, limited by what the cgroup (version 2 or 1) leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    available = int(psutil.virtual_memory().available)
    if found := _cgroup_memory(cgroup):
        # Reclaimable file cache counts as used: an underestimate is safe.
        limit, used = found
        return min(available, max(0, limit - used))
    return available


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that this process may ever allocate: the machine's, or the cgroup's limit."""
    import psutil

    total, found = int(psutil.virtual_memory().total), _cgroup_memory(cgroup)
    return min(total, found[0]) if found else total


def _cgroup_memory(cgroup: Path) -> tuple[int, int] | None:
    """Limit and usage of the cgroup (version 2 or 1), in bytes; ``None`` for no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (cgroup / limit).read_text().strip()
            return None if text == "max" else (int(text), int((cgroup / used).read_text()))
        except (OSError, ValueError):
            continue
    return None


def _cgroup_quota(cgroup: Path) -> float | None:
    """CPUs that the cgroup grants; ``None`` for no limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
