"""In what one rendering differs from another: image, namespace, GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from cnn_jobs import __version__
from cnn_jobs.errors import UserError
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.tasks import Task

# A DNS label (RFC 1123): what a namespace has to be called, and a claim may be.
DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
# The grammar of image names: https://github.com/distribution/reference, reference.go.
_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = rf"(?P<name>(?:{_DOMAIN}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@sha256:[0-9a-f]{{64}})?"
_EXAMPLE = f"registry.example/cnn-jobs:{__version__}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``image``: with a tag; ``gpus``: of each pod that trains, 0 for training on CPUs; ``state_claim``: the
    PersistentVolumeClaim that holds the state directory of trainings, "" for one that goes with the pod;
    ``data_claim``: that of the data volume, "" for Jobs whose data is in the image, in a bucket, or drawn.

    Raises ``UserError`` (exit 2) for an image without a tag or with ``latest``, and for what is no name.
    """

    image: str = f"cnn-jobs:{__version__}"
    namespace: str = "cnn-jobs"
    gpus: int = 1
    state_claim: str = ""
    data_claim: str = "cnn-jobs-data"

    def __post_init__(self) -> None:
        _check_image(self.image)
        check_name("--namespace", self.namespace, "namespaces")
        for flag, claim in (("--state-claim", self.state_claim), ("--data-claim", self.data_claim)):
            if claim:
                check_name(flag, claim, "persistentvolumeclaims")
        if self.gpus < 0:
            raise UserError(f"--gpu is {self.gpus}, but must be 0 or more; 0 trains on CPUs")


def check_name(flag: str, name: str, kind: str) -> None:
    """Raises ``UserError`` (exit 2) for what is no DNS label."""
    if not re.fullmatch(DNS_LABEL, name):
        raise UserError(
            f"{flag} is '{name}', but must be 1 to 63 lower-case letters, digits or '-', the first and last no '-'; "
            f"take a name that 'kubectl get {kind}' shows"
        )


def _check_image(image: str) -> None:
    found = re.fullmatch(_IMAGE, image, flags=re.ASCII)
    if not found:
        raise UserError(f"--image is '{image}', but must be NAME:TAG in lower case, as {_EXAMPLE}")
    if found["tag"] in (None, "latest"):
        what = "names 'latest'" if found["tag"] else "has no tag, which means 'latest'"
        raise UserError(
            f"--image is '{image}', which {what}: nobody could say later what ran; name a version, as {_EXAMPLE}"
        )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """CPUs; memory, state directory, temporary files and, as part of the memory, /dev/shm in GiB; ``why``: where the
    numbers come from."""

    cpus: int = 2
    memory_gib: int
    state_gib: int = 1
    scratch_gib: int = 1
    shared_gib: int = 0
    why: str


# Peaks of whole runs on a CPU, on data of CIFAR-10's size: task2 1.49 GB (docs/performance.md, "Memory"), task3e
# 1.55 GB (benchmarks.peak, 2026-11-24). CUDA's libraries and context come on top, which were not measured: 4 GiB leave
# 2.7 GB for them. A run of task3e leaves 40 MB in the state directory (doctor/disk.py). Two CPUs are what all speeds in
# docs/performance.md were measured with.
SMALL_NETWORK = Needs(
    memory_gib=4,
    why="A run on CIFAR-10 took 1.6 GB of memory on a CPU; the rest is for CUDA. It leaves 40 MB of state.",
)
# task4a on a CPU, without the features: 2.0 GB (benchmarks.peak, 2026-11-24, on 2,200 images); CIFAR-10 adds 0.2 GB.
# Kept features of CIFAR-10 are 12.0 GB, 11.2 GiB (docs/transfer.md): on the GPU where half of its free memory holds
# them, else in the state directory, where the file cache makes use of what is left of the memory. Checkpoints and
# files: 250 MB.
RESNET = Needs(
    memory_gib=8,
    state_gib=14,
    why="A run took 2.2 GB of memory on a CPU. Features kept of CIFAR-10 are 12 GB (docs/transfer.md): in the GPU's "
    "memory where half of what is free there holds them, else in the state directory.",
)
# docs/report-speed.md: 356 MB for 1,000 runs, 983 MB for 10,000.
REPORT = Needs(memory_gib=2, why="A report on 10,000 runs took 1 GB (docs/report-speed.md).")
# docs/performance.md: torch, MLflow and matplotlib alone are 825 MB; ResNet18 and one picture add little.
INTERPRETATION = Needs(memory_gib=2, why="torch, MLflow and matplotlib take 0.8 GB (docs/performance.md).")
# The archive, its pictures and the copy that is written: three times the 185 MB of CIFAR-10, beside torch.
STAGING = Needs(
    cpus=1, memory_gib=2, why="torch and three copies of CIFAR-10, 185 MB each; what is staged goes to the data volume."
)


def with_shared_memory(needs: Needs, gib: int = 1) -> Needs:
    """The same for a process among several: NCCL keeps buffers in /dev/shm, where a container has 64 MiB by default."""
    why = f"{needs.why} {gib} GiB more for /dev/shm, which counts as memory."
    return replace(needs, memory_gib=needs.memory_gib + gib, shared_gib=gib, why=why)


def needs_of(task: Task) -> Needs:
    """What a training of ``task`` needs: by its network, so that a new task has an answer, too."""
    return RESNET if isinstance(task.network, ResNet18) else SMALL_NETWORK
