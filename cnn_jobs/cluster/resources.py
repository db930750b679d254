"""CPUs, memory and disk that each kind of Job requests, from measurements."""

from __future__ import annotations

from dataclasses import dataclass

from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Sizes in GiB of memory, state directory, temporary files and /dev/shm, which is part of the memory.

    ``why``: source of the numbers, for the comment in the manifest.
    """

    cpus: int = 2
    memory_gib: int
    state_gib: int = 1
    scratch_gib: int = 1
    shared_gib: int = 0
    why: str


# Peaks of whole runs on a CPU, on data of CIFAR-10's size: task2 1.49 GB (docs/performance.md, "Memory"), task3e
# 1.55 GB (benchmarks.peak, 2026-11-24). CUDA's libraries and context add to that and were not measured: 4 GiB leave
# 2.7 GB for them. A run of task3e writes 40 MB of state (doctor/machine.py). All speeds in docs/performance.md were
# measured with two CPUs.
SMALL_NETWORK = Resources(
    memory_gib=4,
    why="A run on CIFAR-10 took 1.6 GB of memory on a CPU; the rest is for CUDA. It writes 40 MB of state.",
)
# task4a on a CPU, without the features: 2.0 GB (benchmarks.peak, 2026-11-24, on 2,200 images); CIFAR-10 adds 0.2 GB.
# Cached features of CIFAR-10 take 12.0 GB, 11.2 GiB (docs/transfer.md): on the GPU if they fit into half of its free
# memory, else in the state directory, where the file cache uses the remaining memory. Checkpoints and files: 250 MB.
RESNET = Resources(
    memory_gib=8,
    state_gib=14,
    why="A run took 2.2 GB of memory on a CPU. Cached features of CIFAR-10 take 12 GB (docs/transfer.md): in the GPU's "
    "memory if they fit into half of what is free there, else in the state directory.",
)
# docs/report-speed.md: 356 MB for 1,000 runs, 983 MB for 10,000.
REPORT = Resources(memory_gib=2, why="A report on 10,000 runs took 1 GB (docs/report-speed.md).")
# docs/performance.md: torch, MLflow and matplotlib alone take 825 MB; ResNet18 and one picture add little.
INTERPRETATION = Resources(memory_gib=2, why="torch, MLflow and matplotlib take 0.8 GB (docs/performance.md).")
# The archive, its pictures and the copy being written: three times the 185 MB of CIFAR-10, plus torch.
STAGING = Resources(
    cpus=1, memory_gib=2, why="torch and three copies of CIFAR-10, 185 MB each; the data volume holds what is staged."
)


def resources_of(task: Task) -> Resources:
    """Resources of a training, by its network, so that a new task has an answer, too."""
    return RESNET if isinstance(task.network, ResNet18) else SMALL_NETWORK
