"""Memory of the device that trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the page must be there before torch is
    import torch


def device_memory(device: torch.device) -> dict[str, float]:
    """Bytes: ``used`` now, ``peak`` so far, ``limit``; of a CPU those of this process, and of its control group."""
    if device.type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        used, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return {"used": float(used), "peak": float(peak), "limit": float(total)}
    import psutil

    from cnn_jobs.training.device import memory_limit

    used = psutil.Process().memory_info().rss
    return {"used": float(used), "peak": float(max(used, peak_memory())), "limit": float(memory_limit())}


def peak_memory() -> int:
    """The most of this process so far, in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0
