"""The list of Jobs, each as a ``Plan``: every task of the registry, its seeds, the Jobs around them; and what each
requests of CPUs, memory and disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cnn_jobs import __version__
from cnn_jobs.errors import UserError
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.tasks import INTERPRETATIONS, TASKS, Interpretation, Task

SUFFIX = "-job.yaml"
SEEDS = 5
# Tasks that also get a Job of several processes, one pod each: the one without BatchNorm, which gloo can train, and the
# largest.
DISTRIBUTED = ("task2", "task4a")
PROCESSES = 2
HOUR_S = 3600


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
# docs/performance.md: torch, MLflow and matplotlib take 825 MB; ResNet18 and one picture add little.
INTERPRETATION = Resources(memory_gib=2, why="torch, MLflow and matplotlib take 0.8 GB (docs/performance.md).")
# The archive, its pictures and the copy being written: three times the 185 MB of CIFAR-10, plus torch.
STAGING = Resources(
    cpus=1, memory_gib=2, why="torch and three copies of CIFAR-10, 185 MB each; the data volume holds what is staged."
)


def resources_of(task: Task) -> Resources:
    """Resources of a training, by the type of its network, so that new tasks have them, too."""
    return RESNET if isinstance(task.network, ResNet18) else SMALL_NETWORK


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One Job. ``name`` is that of the Job and its file; ``args`` are the arguments of ``cnn-jobs``.

    ``component`` is training, report, data, doctor or interpret. ``task`` becomes a label. ``uses_device``: takes
    ``--device`` and the GPUs of a training. ``data``: how the data volume is mounted: "" (not at all), read or write.
    ``indexes``: above 0, an Indexed Job with one run per index, whose pods get their index in ``index_variable``.
    ``processes``: above 1, an Indexed Job whose pods train one run together (DDP). ``deadline_s`` is for the whole Job,
    including the time its pods wait for nodes.
    """

    name: str
    title: str
    component: str
    args: tuple[str, ...]
    resources: Resources
    deadline_s: int = HOUR_S
    retries: int = 2
    task: str = ""
    uses_device: bool = False
    data: str = ""
    keeps_state: bool = True
    env: tuple[tuple[str, str], ...] = ()
    indexes: int = 0
    index_variable: str = ""
    processes: int = 1

    @property
    def file(self) -> str:
        """Name of the Job's file."""
        return f"{self.name}{SUFFIX}"

    @property
    def container(self) -> str:
        """Name of the container."""
        return {"training": "train", "data": "prepare"}.get(self.component, self.component)

    @property
    def trains(self) -> bool:
        """Whether the pods are attempts of training runs."""
        return self.component == "training"

    @property
    def distributed(self) -> bool:
        """Whether several pods train one run."""
        return self.processes > 1

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the Job, of its pods, and of its Service and NetworkPolicy."""
        return {
            "app.kubernetes.io/name": "cnn-jobs",
            "app.kubernetes.io/part-of": "cnn-jobs",
            "app.kubernetes.io/component": self.component,
            "app.kubernetes.io/version": __version__,
            **({"cnn-jobs/task": self.task} if self.task else {}),
        }


PREPARE_DATA = Plan(
    name="prepare-data",
    title="CIFAR-10 and ImageNet's weights of ResNet18, downloaded once to the data volume",
    component="data",
    args=("data", "stage"),
    resources=STAGING,
    # The host of CIFAR-10 took 57 minutes in 2026 (pytorch/vision#9536), and a broken download starts over.
    deadline_s=6 * HOUR_S,
    retries=5,
    data="write",
    keeps_state=False,
)
DOCTOR = Plan(
    name="doctor",
    title="Checks what a training pod needs: data, weights, MLflow, GPU, disk",
    component="doctor",
    # task4a needs the most: pretrained weights, too.
    args=("doctor", "--task", "task4a"),
    resources=SMALL_NETWORK,
    retries=0,
    uses_device=True,
    data="read",
    env=(("CNN_JOBS_LOG_FORMAT", "text"),),
)
COMPARISON = Plan(
    name="report",
    title="Comparison of all runs of the experiment, kept in MLflow",
    component="report",
    args=("report", "--out", "/tmp/report", "--log"),
    resources=REPORT,
)


def all_plans() -> list[Plan]:
    """Every Job, in the order in which a user meets them."""
    trainings = {name: _training(task) for name, task in TASKS.items()}
    return [
        PREPARE_DATA,
        DOCTOR,
        *trainings.values(),
        *map(_seeds, trainings.values()),
        *(_distributed(trainings[name]) for name in DISTRIBUTED),
        *map(_interpretation, INTERPRETATIONS.values()),
        COMPARISON,
    ]


def choose(names: Iterable[str], *, data_volume: bool = True) -> list[Plan]:
    """The Jobs of these names, all of them for none. Without ``data_volume`` there is no Job that fills it.

    Raises ``UserError`` that lists the valid names.
    """
    plans = {plan.name: plan for plan in all_plans() if data_volume or plan.data != "write"}
    wanted = list(names) or list(plans)
    for name in wanted:
        if name not in plans:
            raise UserError(f"'{name}' is no Job; the Jobs are {', '.join(plans)}")
    return [plans[name] for name in wanted]


def _training(task: Task) -> Plan:
    return Plan(
        name=task.name,
        title=task.title,
        component="training",
        args=("train", task.name),
        resources=resources_of(task),
        # A run takes minutes; a day leaves time to wait for a GPU, and for MLflow (up to an hour per attempt).
        deadline_s=24 * HOUR_S,
        retries=3,
        task=task.name,
        uses_device=True,
        data="read",
    )


def _seeds(one: Plan) -> Plan:
    title = f"{one.title}: seeds 0 to {SEEDS - 1}"
    return replace(one, name=f"{one.name}-seeds", title=title, indexes=SEEDS, index_variable="CNN_JOBS_SEED")


def _distributed(one: Plan) -> Plan:
    # NCCL keeps buffers in /dev/shm, where a container has 64 MiB by default.
    why = f"{one.resources.why} 1 GiB more for /dev/shm, which counts as memory."
    memory_gib = one.resources.memory_gib + 1
    return replace(
        one,
        name=f"{one.name}-ddp",
        title=f"{one.title}: {PROCESSES} processes",
        args=(*one.args, "--world-size", str(PROCESSES)),
        resources=replace(one.resources, memory_gib=memory_gib, shared_gib=1, why=why),
        # For all pods together. A pod that fails by itself counts; one that lost a peer after progress does not.
        retries=2 * one.retries,
        processes=PROCESSES,
    )


def _interpretation(shown: Interpretation) -> Plan:
    return Plan(
        name=shown.name,
        title=shown.title,
        component="interpret",
        args=("interpret", shown.name, "--out", f"/tmp/{shown.name}"),
        resources=INTERPRETATION,
        task=shown.name,
        data="read",
    )
