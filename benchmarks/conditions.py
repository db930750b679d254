"""The conditions of a measurement: machine, versions, command, load."""

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
    """Machine, versions, command and the load average before the measurement; JSON-ready."""
    facts = environment.lineage("cpu", threads)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": shlex.join(["python", "-m", program, *(_without_folder(argument) for argument in arguments)]),
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


def _without_folder(argument: str) -> str:
    """The last part of a path: the folder of a data set differs from machine to machine."""
    return argument.rpartition("/")[2] if "://" not in argument else argument
