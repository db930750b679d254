"""``cnn-jobs manifests``: render the Kubernetes Jobs of the registry, and check the rendered files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cnn_jobs.cli.options import no_option, option
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import UserError

Command = Callable[..., Any]

namespace_option = option("namespace", default=Settings.namespace, help="Namespace of the Jobs.")
# The variable of a pod's own image: the --image of 'interpret' is a picture.
image_option = option(
    "image",
    variable="container_image",
    default=Settings.image,
    metavar="NAME:TAG",
    help="Container image; 'latest' is refused.",
)


def data_volume_options(command: Command) -> Command:
    """Adds ``--data-claim`` and ``--no-data-volume``; ``data_claim_of`` reads them."""
    claim = option(
        "data_claim",
        default=None,
        show_default=Settings.data_claim,
        metavar="NAME",
        help="PersistentVolumeClaim with data sets and weights.",
    )
    return claim(
        no_option("data_volume", "Jobs without it: data that is in the image, in a bucket, or generated (shapes).")(
            command
        )
    )


def data_claim_of(data_claim: str | None, *, no_data_volume: bool) -> str:
    """The claim of the data volume, "" for none."""
    if no_data_volume and data_claim:
        raise UserError(f"--no-data-volume and --data-claim {data_claim} contradict each other; leave one of them out")
    return "" if no_data_volume else data_claim or Settings.data_claim


def rendering_options(command: Command) -> Command:
    """Adds the options that decide the text of the files, and their folder."""
    for add in (
        no_option("gpu", "Jobs that train on CPUs; the same as --gpu 0."),
        option("gpu", type=click.IntRange(min=0), default=None, show_default="1", help="GPUs of a pod that trains."),
        option(
            "state_claim",
            default="",
            show_default="none: a volume that is deleted with the pod",
            metavar="NAME",
            help="PersistentVolumeClaim for the state of trainings, which then outlives their pods.",
        ),
        data_volume_options,
        namespace_option,
        image_option,
        option("out", type=click.Path(path_type=Path, file_okay=False), default="k8s", help="Folder of the files."),
    ):
        command = add(command)
    return command


@click.group("manifests")
def manifests() -> None:
    """Render the Kubernetes Jobs from the registry of tasks, or check the rendered files."""


@manifests.command("render", context_settings={"show_default": True})
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@rendering_options
def render_command(jobs: tuple[str, ...], out: Path, **given: Any) -> None:
    """Write JOB-job.yaml for each JOB, by default for all.

    \b
    A JOB is a task (task2: one run), a task and '-seeds' (task2-seeds: five runs
    with different seeds), task2-ddp or task4a-ddp (one run, two processes),
    prepare-data, doctor or report.
    """
    from cnn_jobs.cluster.manifests import write_files
    from cnn_jobs.cluster.plans import choose

    settings = _settings(**given)
    for path in write_files(choose(jobs, data_volume=bool(settings.data_claim)), settings, out):
        click.echo(path)


@manifests.command("check", context_settings={"show_default": True})
@rendering_options
def check_command(out: Path, **given: Any) -> None:
    """Compare the files with their rendering: one line per difference, and exit code 1 if there is any.

    Takes the options with which they were rendered. Everything counts: fields, comments, missing and surplus files.
    """
    from cnn_jobs.cluster.manifests import differences
    from cnn_jobs.cluster.plans import choose

    settings = _settings(**given)
    found = differences(out, settings)
    for line in found:
        click.echo(f"error: {line}", err=True)
    if found:
        sys.exit(1)
    click.echo(f"{len(choose([], data_volume=bool(settings.data_claim)))} Jobs in {out} are as rendered")


def _settings(*, gpu: int | None, no_gpu: bool, data_claim: str | None, no_data_volume: bool, **given: str) -> Settings:
    if no_gpu and gpu:
        raise UserError(f"--no-gpu and --gpu {gpu} contradict each other; leave one of them out")
    gpus = 0 if no_gpu else Settings.gpus if gpu is None else gpu
    return Settings(gpus=gpus, data_claim=data_claim_of(data_claim, no_data_volume=no_data_volume), **given)
