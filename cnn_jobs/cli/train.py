"""``cnn-jobs train``: parse, build, call."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_jobs.cli import print_error
from cnn_jobs.cli.options import monitoring_options, option, recipe_options, state_dir_option
from cnn_jobs.distributed.rendezvous import rendezvous_of
from cnn_jobs.distributed.world import RENDEZVOUS_TIMEOUT_S, World, default_size, world_of
from cnn_jobs.errors import CnnJobsError, UserError
from cnn_jobs.monitoring import logs
from cnn_jobs.monitoring.monitor import MonitoringOptions, monitored
from cnn_jobs.recipe import Planned, pick, plan
from cnn_jobs.system.environment import check_run_key, default_ship_deadline_s, in_pod, job_group, job_run_key
from cnn_jobs.system.process import keep_freed_memory, limit_spinning
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import get_task
from cnn_jobs.training.observer import fan_out

if TYPE_CHECKING:  # torch is imported once the options are known to be valid
    from cnn_jobs.runs.setup import Session


def _shared() -> bool:
    """Whether the processes of this command's Job train one run."""
    return bool(click.get_current_context().params.get("world_size", 1) > 1)


@click.command(context_settings={"show_default": True})
@click.argument("task")
@option(
    "data",
    default="cifar10",
    help="Data set: cifar10, shapes, an ImageFolder folder or .zip, an .npz, s3://...",
)
@recipe_options
@option("seeds", default="", help="Several seeds, one run after another: 0-4 or 0,2,5-7.")
@option("sweep", multiple=True, metavar="FIELD=V1,V2", help="Values of a recipe field; repeated, a grid.")
@option(
    "point",
    type=click.IntRange(min=0),
    default=None,
    help="Of the runs that --seeds and --sweep give only this one, counted from 0.",
)
@option("device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train.")
@option(
    "world_size",
    type=click.IntRange(min=1),
    default=lambda: default_size(),
    show_default="WORLD_SIZE, else 1",
    is_eager=True,  # the run's key depends on it
    help="Processes that train the run together, this one included: docs/distributed.md.",
)
@option(
    "rendezvous_timeout",
    type=click.FloatRange(min=0),
    default=RENDEZVOUS_TIMEOUT_S,
    help="Seconds to wait for the other processes.",
)
@option("threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0: as many as this process may use.")
@option("fast", is_flag=True, default=False, help="On CUDA, faster arithmetic that does not repeat bit for bit.")
@option(
    "graph",
    is_flag=True,
    default=True,
    help="On CUDA, launch each step as one graph: several times as fast for small networks, with the same bits.",
)
@option(
    "fast_convolutions",
    is_flag=True,
    default=True,
    help="On a CPU, compute convolutions by tiles: faster, with other last bits than torch's own.",
)
@option(
    "trunk_cache",
    type=click.Choice(["auto", "memory", "disk", "off"]),
    default="auto",
    help="Where task4a keeps the features from its frozen layers; off: computed at each step.",
)
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option(
    "group",
    default=lambda: job_group(shared=_shared()),
    show_default="in an Indexed Job its UID, else the run's key",
    help="A name for runs that are started together.",
)
@option("run_name", default="", help="Name of the run in MLflow; by default the task and the seed.")
@state_dir_option
@option(
    "run_key",
    default=lambda: job_run_key(shared=_shared()),
    show_default="in a Kubernetes Job its UID and index (with --world-size, its UID), else a new one",
    help="Key of the run: the same key continues it.",
)
@option(
    "resume",
    type=click.Choice(["auto", "never", "must"]),
    default="auto",
    help="Resume from the key's last checkpoint: where there is one, never, or fail without.",
)
@option(
    "checkpoint_every",
    type=click.FloatRange(min=0),
    default=60.0,
    help="Seconds between checkpoints; there is also one at every validation.",
)
@option(
    "ship_deadline",
    type=click.FloatRange(min=0),
    default=default_ship_deadline_s,
    show_default="60, in a pod 3600",
    help="Seconds to wait at the end until MLflow has everything.",
)
@option(
    "durable_state",
    is_flag=True,
    default=lambda: not in_pod(),
    show_default="yes, in a pod no",
    help="Whether the state directory outlives this process: what MLflow lacks can then be sent later (exit code 75).",
)
@monitoring_options
def train(
    task: str,
    data: str,
    seeds: str,
    sweep: tuple[str, ...],
    point: int | None,
    device: str,
    world_size: int,
    rendezvous_timeout: float,
    threads: int,
    fast: bool,
    graph: bool,
    fast_convolutions: bool,
    trunk_cache: str,
    experiment: str,
    group: str,
    run_name: str,
    state_dir: Path,
    run_key: str,
    resume: str,
    checkpoint_every: float,
    ship_deadline: float,
    durable_state: bool,
    metrics_port: int,
    metrics_host: str,
    metrics_linger: float,
    pushgateway: str,
    **changes: Any,  # of the recipe, by field
) -> None:
    """Train TASK and keep the run in MLflow. 'cnn-jobs tasks' lists the tasks.

    \b
    Exit codes: 0 when the run is finished and everything is in MLflow; 75 when
    the same command (with the --run-key that is printed) continues where it
    stopped; 2 when the command can never succeed (a bad option, bad data, a
    training that diverged); 1 for anything else.
    """
    # Before torch is imported: a signal in those seconds must end the run properly, too.
    stop = StopRequest()
    stop.install()
    logs.ignore_lost_output()
    limit_spinning()
    keep_freed_memory()
    entry = get_task(task)
    world = world_of(world_size, rendezvous_timeout)
    monitoring = MonitoringOptions(
        metrics_port=0 if world.rank else metrics_port,  # rank 0 reports the run
        metrics_host=metrics_host,
        metrics_linger=metrics_linger,
        pushgateway="" if world.rank else pushgateway,
    )
    print_line = _line_printer(world)
    logs.add_context("world", lambda: {"rank": world.rank} if world.distributed else {})
    with monitored(
        entry.name,
        monitoring,
        stop,
        lambda text: print_line(f"warning: {text}"),
        lambda error: print_error(error, print_line),
    ) as monitor:
        if run_key:
            check_run_key(run_key)
        recipe = dataclasses.replace(entry.recipe, **{k: v for k, v in changes.items() if v is not None})
        planned = plan(recipe, seeds, sweep)
        if point is not None:
            planned = [pick(planned, point)]
        if world.distributed and len(planned) > 1:
            raise UserError(f"--world-size {world.size} trains one run; start a command for each seed or value")
        for item in planned:
            entry.check(item.recipe)
            world.check_batch(item.recipe.batch_size)

        with rendezvous_of(world, stop) as rendezvous:
            from cnn_jobs.cli.console import progress_observer
            from cnn_jobs.data.sources import open_dataset
            from cnn_jobs.runs.series import exit_code
            from cnn_jobs.runs.setup import RunOptions, Session
            from cnn_jobs.runs.worker import train_worker
            from cnn_jobs.tracking.connection import tracking_uri

            options = RunOptions(
                tracking_uri=tracking_uri(),
                state_dir=state_dir,
                device=device,
                fast=fast,
                threads=threads,
                experiment=experiment,
                run_name=run_name,
                ship_deadline_s=ship_deadline,
                group=group,
                run_key=run_key,
                key_from_job=run_key == job_run_key(shared=world.distributed) != "",
                resume=resume,
                checkpoint_every_s=checkpoint_every,
                trunk_cache=trunk_cache,
                graph=graph,
                fast_convolutions=fast_convolutions,
                state_outlives_process=durable_state,
            )
            logs.capture_libraries()
            # The monitor first, so that lines of the other observers carry the present step.
            observer = fan_out(monitor, progress_observer())
            session = Session(entry, options, open_dataset(data), observer, stop, rendezvous)
            if world.rank:
                train_worker(session, planned[0].recipe)
                errors: list[CnnJobsError] = []
            else:
                errors = _train(session, planned, print_line)
            rendezvous.end(exit_code(errors), str(errors[0]) if errors else "finished")
        sys.exit(exit_code(errors))


def _train(session: Session, planned: Sequence[Planned], print_line: Callable[[str], None]) -> list[CnnJobsError]:
    """Trains one run or a series, and prints the results; returns the error of each run that did not finish."""
    from cnn_jobs.cli.console import how_to_continue, print_results
    from cnn_jobs.runs.series import train_series
    from cnn_jobs.runs.train import train_run

    if len(planned) > 1:
        results, errors = train_series(session, planned, lambda line: print_line(f"error: {line}"))
    else:
        (item,), results, errors = planned, [], []
        if item.label:
            session = session.with_options(run_name=f"{session.options.run_name or session.task.name}-{item.label}")
        try:
            results = [train_run(session, item.recipe)]
        except CnnJobsError as error:
            errors = [error]
    session.stop.mask()  # only the printing is left
    print_results(session.task, results, session.options, synthetic=session.dataset.synthetic)
    if len(planned) == 1 and errors:
        print_line(f"error: {errors[0]}")
    for each in errors:
        for note in [*getattr(each, "__notes__", ()), *how_to_continue(each, session.options)]:
            click.echo(note, err=True)
    return errors


def _line_printer(world: World) -> Callable[[str], None]:
    """Prints lines on stderr; in a distributed run each names the rank."""

    def print_line(line: str) -> None:
        kind, colon, rest = line.partition(": ")
        click.echo(f"{kind}: {world.name}: {rest}" if world.distributed and colon else line, err=True)

    return print_line
