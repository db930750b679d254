"""``cnn-jobs submit``: run a task as a new Kubernetes Job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from cnn_jobs.cli.jobs import cluster_options, next_command
from cnn_jobs.cli.manifests import data_claim_of, data_volume_options, image_option
from cnn_jobs.cli.options import option
from cnn_jobs.cluster import jobs as cluster_jobs
from cnn_jobs.cluster.client import Cluster
from cnn_jobs.cluster.settings import Settings, check_name
from cnn_jobs.cluster.status import job_status
from cnn_jobs.cluster.yaml_writer import to_yaml
from cnn_jobs.errors import UserError
from cnn_jobs.monitoring.logs import plain_stdout
from cnn_jobs.recipe import FIELD_NAMES, Planned, plan
from cnn_jobs.tasks import get_task

# Fields that --set refuses, with the reason for the error: the manifest or an option of 'submit' decides them.
DECIDED = {
    "device": "--gpu decides it",
    "state_dir": "the manifest decides it",
    "durable_state": "--state-volume decides it",
    "run_key": "it is the Job's UID",
    "resume": "a new Job is a new run, which its pods resume by themselves",
    "seeds": "use --seeds",
    "sweep": "use --sweep",
    "point": "use --sweep or --seeds",
    "metrics_port": "network policies and the PodMonitor rely on it",
    "metrics_host": "network policies and the PodMonitor rely on it",
    "out": "the manifest decides it",
    "log": "what a pod writes is kept in MLflow",
}


@click.command(context_settings={"show_default": True})
@click.argument("task")
@option("seed", default=None, type=click.IntRange(min=0), show_default="the task's", help="Seed of a single run.")
@option("seeds", default="", help="Several seeds, one pod each: 0-4 or 0,2,5-7.")
@option("sweep", multiple=True, metavar="FIELD=V1,V2", help="Values of a recipe field, one pod each; repeated: a grid.")
@option("set", multiple=True, metavar="FIELD=VALUE", help="Any option of the pod's command: epochs=3, data=shapes.")
@option("gpu", type=click.IntRange(min=0), default=Settings.gpus, help="GPUs of a pod; 0 trains on CPUs.")
@option("queue", default="", metavar="NAME", help="Kueue queue (a LocalQueue) in which the Job waits.")
@option(
    "state_volume",
    default="",
    show_default="none: a volume that is deleted with the pod",
    metavar="PVC",
    help="PersistentVolumeClaim for the state of a training, which then outlives its pods.",
)
@data_volume_options
@image_option
@cluster_options
@option("dry_run", is_flag=True, default=False, help="Print the Job for 'kubectl create -f -' and contact no cluster.")
def submit(context: str, *, dry_run: bool, **given: Any) -> None:
    """Run TASK on a Kubernetes cluster, as a new Job with a unique name.

    \b
    TASK is a task, or any other Job of 'cnn-jobs manifests': prepare-data,
    doctor, report, task4b, task4c. Each call is a new run, which the pods of its
    Job resume. Several seeds or a grid are one Job with one pod per run; each
    trains what 'cnn-jobs train' with the same options would train.
    """
    given["pairs"] = given.pop("set")
    request = _request(**given)
    if dry_run:
        click.echo(to_yaml(request.manifest()), nl=False, file=plain_stdout())
        return
    namespace = request.settings.namespace
    job = job_status(cluster_jobs.submit(Cluster(namespace, context), request))
    click.echo(f"Job {job.name} is created in namespace {namespace}")
    if job.records:
        for index in job.run_indexes:
            label = f"  {request.labels[index]}" if index is not None and request.labels else ""
            click.echo(f"Run key {job.run_key(index)}{label}")
    for name in ("status", "logs -f", "cancel"):
        click.echo(f"  {next_command(name, job.name, namespace, context)}")


def _request(
    task: str,
    seed: int | None,
    seeds: str,
    sweep: Sequence[str],
    pairs: Sequence[str],
    *,
    state_volume: str,
    queue: str,
    gpu: int,
    data_claim: str | None,
    no_data_volume: bool,
    **given: str,
) -> cluster_jobs.Request:
    """Everything that can be refused is refused here, before a cluster is contacted."""
    if state_volume:
        check_name("--state-volume", state_volume, "persistentvolumeclaims")
    if queue:
        check_name("--queue", queue, "localqueues")
    data = data_claim_of(data_claim, no_data_volume=no_data_volume)
    settings = Settings(gpus=gpu, state_claim=state_volume, data_claim=data, **given)
    chosen = cluster_jobs.plan_for(task)
    fixed = chosen.indexes > 0 or not chosen.trains
    if fixed and (seed is not None or seeds or sweep):
        what = f"{chosen.indexes} seeds already" if chosen.indexes else "no training"
        raise UserError(f"--seed, --seeds and --sweep are for a task; '{task}' is {what}; leave them out")
    if seed is not None:
        pairs = [*pairs, f"seed={seed}"]
    options, values = pod_options(command_of(chosen.args), pairs)
    if chosen.indexes and "seed" in values:
        raise UserError(f"--set seed: in '{task}' the seed is the pod's index; use '{chosen.task}' and --seed")
    planned = _planned(chosen.task, values, seeds, sweep) if chosen.trains else []
    labels = tuple(each.label for each in planned) if len(planned) > 1 else ()
    chosen = cluster_jobs.with_runs(chosen, options, seeds, sweep, planned)
    return cluster_jobs.Request(plan=chosen, settings=settings, queue=queue, labels=labels)


def command_of(args: Sequence[str]) -> click.Command:
    """The command that a pod with these ``args`` calls."""
    from cnn_jobs.cli import cli

    command: click.Command = cli
    for word in args:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def pod_options(command: click.Command, pairs: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """``["lr=1e-3", "fast=true"]`` as ``["--lr", "1e-3", "--fast"]``, and the values by field.

    Raises ``UserError`` (exit 2) for a field that is unknown, repeated or not for the user to set, and for an invalid
    value.
    """
    options = {each.name: each for each in command.params if isinstance(each, click.Option) and each.name}
    words: list[str] = []
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name in options and name in DECIDED:
            raise UserError(f"--set {pair}: {name} cannot be set here, {DECIDED[name]}")
        if not equals or name not in options:
            valid = ", ".join(sorted(each for each in options if each not in DECIDED))
            raise UserError(f"--set is '{pair}', but must be FIELD=VALUE with a field of {valid}")
        if name in values:
            raise UserError(f"--set names {name} twice; give each field once")
        option = options[name]
        try:
            values[name] = option.type(text, param=option, ctx=click.Context(command))
        except click.BadParameter as error:
            raise UserError(f"--set {pair}: {error.message}") from error
        if option.is_flag:
            words.append((option.opts if values[name] else option.secondary_opts)[0])
        else:
            words += [option.opts[0], text]
    return words, values


def _planned(task: str, values: dict[str, Any], seeds: str, sweep: Sequence[str]) -> list[Planned]:
    """The runs that the pods will train, each recipe checked."""
    entry = get_task(task)
    if "seed" in values and (seeds or any(each.partition("=")[0].strip() == "seed" for each in sweep)):
        raise UserError("--seed and --seeds (or --sweep seed=...) set the same; use one of them")
    changes = {name: value for name, value in values.items() if name in FIELD_NAMES}
    planned = plan(dataclasses.replace(entry.recipe, **changes), seeds, sweep)
    for each in planned:
        entry.check(each.recipe)
    return planned
