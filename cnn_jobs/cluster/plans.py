"""The Jobs that there are, in words of this project: every task of the registry, its seeds, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cnn_jobs import __version__
from cnn_jobs.cluster.settings import (
    INTERPRETATION,
    REPORT,
    SMALL_NETWORK,
    STAGING,
    Needs,
    needs_of,
    with_shared_memory,
)
from cnn_jobs.errors import UserError
from cnn_jobs.tasks import INTERPRETATIONS, TASKS

SUFFIX = "-job.yaml"
SEEDS = 5
# Trained by several processes, a pod each: one without BatchNorm, which gloo can do, and the largest.
DISTRIBUTED = ("task2", "task4a")
PROCESSES = 2
HOUR_S = 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One Job. ``name`` is the Job's and the file's; ``args`` are those of ``cnn-jobs``.

    ``component`` is training, report, data, doctor or interpret; ``task`` goes into a label. ``uses_device``: it takes
    ``--device`` and the GPUs that training has. ``data``: how the data volume is mounted, "" (not), read or write.
    ``indexes``: above 0 an Indexed Job with ``index_variable`` set to each pod's index. ``processes``: above 1 an
    Indexed Job whose pods train one run together. ``deadline_s``: of the whole Job, waiting for nodes included.
    """

    name: str
    title: str
    component: str
    container: str
    args: tuple[str, ...]
    needs: Needs
    deadline_s: int
    retries: int
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
        """Name of its file."""
        return f"{self.name}{SUFFIX}"


def all_plans() -> list[Plan]:
    """Every Job, in the order in which a user meets them."""
    singles = [_training(name) for name in TASKS]
    seeds = [_seeds(name) for name in TASKS]
    shown = [_interpretation(name) for name in INTERPRETATIONS]
    together = [_distributed(name) for name in DISTRIBUTED]
    return [_prepare_data(), _doctor(), *singles, *seeds, *together, *shown, _report()]


def choose(names: Iterable[str], *, data_volume: bool = True) -> list[Plan]:
    """The Jobs of these names, all for none; without ``data_volume`` there is none that fills it.

    Raises ``UserError`` that lists the valid ones.
    """
    plans = {plan.name: plan for plan in all_plans() if data_volume or plan.data != "write"}
    wanted = list(names) or list(plans)
    for name in wanted:
        if name not in plans:
            raise UserError(f"'{name}' is no Job; the Jobs are {', '.join(plans)}")
    return [plans[name] for name in wanted]


def _training(task: str) -> Plan:
    # A run takes minutes; the day is for waiting: for a GPU, and for MLflow (an hour an attempt).
    return Plan(
        name=task,
        title=TASKS[task].title,
        component="training",
        container="train",
        args=("train", task),
        needs=needs_of(TASKS[task]),
        deadline_s=24 * HOUR_S,
        retries=3,
        task=task,
        uses_device=True,
        data="read",
    )


def _seeds(task: str) -> Plan:
    one = _training(task)
    title = f"{one.title}: seeds 0 to {SEEDS - 1}"
    return replace(one, name=f"{task}-seeds", title=title, indexes=SEEDS, index_variable="CNN_JOBS_SEED")


def _distributed(task: str) -> Plan:
    one = _training(task)
    return replace(
        one,
        name=f"{task}-ddp",
        title=f"{one.title}: {PROCESSES} processes",
        args=(*one.args, "--world-size", str(PROCESSES)),
        needs=with_shared_memory(one.needs),
        # Of all pods together: one that fails by itself counts, one that lost another does not once it has progress.
        retries=2 * one.retries,
        processes=PROCESSES,
    )


def _interpretation(name: str) -> Plan:
    return Plan(
        name=name,
        title=INTERPRETATIONS[name].title,
        component="interpret",
        container="interpret",
        args=("interpret", name, "--out", f"/tmp/{name}"),
        needs=INTERPRETATION,
        deadline_s=HOUR_S,
        retries=2,
        task=name,
        data="read",
    )


def _report() -> Plan:
    return Plan(
        name="report",
        title="Comparison of all runs of the experiment, kept in MLflow",
        component="report",
        container="report",
        args=("report", "--out", "/tmp/report", "--log"),
        needs=REPORT,
        deadline_s=HOUR_S,
        retries=2,
    )


def _prepare_data() -> Plan:
    # The host of CIFAR-10 took 57 minutes in 2026 (pytorch/vision#9536), and what is half downloaded begins again.
    return Plan(
        name="prepare-data",
        title="CIFAR-10 and ImageNet's weights of ResNet18, downloaded once to the data volume",
        component="data",
        container="prepare",
        args=("data", "stage"),
        needs=STAGING,
        deadline_s=6 * HOUR_S,
        retries=5,
        data="write",
        keeps_state=False,
    )


def _doctor() -> Plan:
    # Of task4a, which needs the most: the weights, too.
    return Plan(
        name="doctor",
        title="What a training pod finds around it: data, weights, MLflow, GPU, disk",
        component="doctor",
        container="doctor",
        args=("doctor", "--task", "task4a"),
        needs=SMALL_NETWORK,
        deadline_s=HOUR_S,
        retries=0,
        uses_device=True,
        data="read",
        env=(("CNN_JOBS_LOG_FORMAT", "text"),),
    )


def labels_of(plan: Plan) -> dict[str, str]:
    """Of the Job and of its pods."""
    return {
        "app.kubernetes.io/name": "cnn-jobs",
        "app.kubernetes.io/part-of": "cnn-jobs",
        "app.kubernetes.io/component": plan.component,
        "app.kubernetes.io/version": __version__,
        **({"cnn-jobs/task": plan.task} if plan.task else {}),
    }
