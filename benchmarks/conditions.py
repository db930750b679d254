"""Under which conditions something was measured."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from cnn_jobs.system import environment

PACKAGES = ("torch", "torchvision", "lightning", "mlflow", "numpy", "pillow")


def conditions(arguments: Sequence[str], threads: int, program: str = "benchmarks.run") -> dict[str, Any]:
    """Machine, versions, command and how busy the machine already was: JSON-ready."""
    facts = environment.lineage("cpu", threads)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": shlex.join(["python", "-m", program, *(_without_folder(word) for word in arguments)]),
        "cpu": facts["cpu"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "platform": facts["platform"],
        "python": facts["python"],
        "packages": {name: environment.version_of(name) for name in PACKAGES},
        "commit": facts["git"]["commit"][:12],
        "dirty": facts["git"]["dirty"],
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", ""),
        "load_average": os.getloadavg()[0],
    }


def _without_folder(word: str) -> str:
    """A path's last part: where somebody keeps a data set is of no interest."""
    return word.rpartition("/")[2] if "://" not in word else word
