"""``cnn-jobs train``: parse, build, call."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cnn_jobs.cli import tell
from cnn_jobs.cli.options import monitoring_options, option, recipe_options, state_dir_option
from cnn_jobs.distributed.rendezvous import Company, company
from cnn_jobs.distributed.world import RENDEZVOUS_TIMEOUT_S, World, default_size, world_of
from cnn_jobs.errors import CnnJobsError, UserError
from cnn_jobs.monitoring import logs
from cnn_jobs.monitoring.monitor import MonitoringOptions, watched
from cnn_jobs.recipe import FIELD_NAMES, Planned, Recipe, exit_code, pick, plan
from cnn_jobs.system.environment import check_run_key, default_ship_deadline_s, in_pod, job_group, job_run_key
from cnn_jobs.system.process import keep_freed_memory, limit_spinning
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task, get_task
from cnn_jobs.training.observer import Watcher, Watchers

if TYPE_CHECKING:  # torch is imported when the options are known to be good
    from cnn_jobs.runs.setup import RunOptions


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
    help="Processes that train the run together, this one among them: docs/distributed.md.",
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
    help="On CUDA, launch each step as one graph: several times as fast on small networks, the same bits.",
)
@option(
    "trunk_cache",
    type=click.Choice(["auto", "memory", "disk", "off"]),
    default="auto",
    help="Where task4a keeps what its frozen layers make of each image; off: computed at each step.",
)
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option(
    "group",
    default=lambda: job_group(shared=_shared()),
    show_default="in an Indexed Job its UID, else the run's key",
    help="One word for runs that were started together.",
)
@option("run_name", default="", help="Name of the run in MLflow; by default the task and the seed.")
@state_dir_option
@option(
    "run_key",
    default=lambda: job_run_key(shared=_shared()),
    show_default="in a Kubernetes Job its UID and index (with --world-size, its UID), else a new one",
    help="Name of the run for those who go on with it.",
)
@option(
    "resume",
    type=click.Choice(["auto", "never", "must"]),
    default="auto",
    help="Go on from the key's last checkpoint: where there is one, never, or not start without.",
)
@option(
    "checkpoint_every",
    type=click.FloatRange(min=0),
    default=60.0,
    help="Seconds between checkpoints; there is one at every validation, too.",
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
    help="Whether the state directory outlives this process: then what MLflow lacks can be sent later (exit code 75).",
)
@monitoring_options
def train(task: str, data: str, seeds: str, sweep: tuple[str, ...], point: int | None, **given: Any) -> None:
    """Train TASK and keep the run in MLflow. 'cnn-jobs tasks' lists the tasks.

    \b
    Ends with exit code 0 when the run is finished and everything is in MLflow,
    75 when the same command (with the --run-key that is printed) goes on where
    it stopped, 2 when it can never work as asked (a bad option, bad data, a
    training that diverged), 1 for anything else.
    """
    # Before torch is imported: a signal in those seconds must end the run properly, too.
    stop = StopRequest()
    stop.install()
    limit_spinning()
    keep_freed_memory()
    entry = get_task(task)
    world = world_of(given.pop("world_size"), given.pop("rendezvous_timeout"))
    seen = MonitoringOptions(**{field.name: given.pop(field.name) for field in dataclasses.fields(MonitoringOptions)})
    if world.rank:  # the run's figures are rank 0's
        seen = dataclasses.replace(seen, metrics_port=0, pushgateway="")
    logs.add_context("world", lambda: {"rank": world.rank} if world.distributed else {})
    say = _Speaker(world)
    with watched(
        entry.name, seen, stop, lambda text: say(f"warning: {text}"), lambda error: tell(error, say)
    ) as monitor:
        sys.exit(_train(entry, data, (seeds, sweep, point), given, monitor, stop, world, say))


class _Speaker:
    """Lines on stderr, which say whose they are where several processes write."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, line: str) -> None:
        word, colon, rest = line.partition(": ")
        click.echo(f"{word}: {self._world.name}: {rest}" if self._world.distributed and colon else line, err=True)


def _train(
    entry: Task,
    data: str,
    series: tuple[str, Sequence[str], int | None],
    given: dict[str, Any],
    monitor: Watcher,
    stop: StopRequest,
    world: World,
    say: _Speaker,
) -> int:
    """Everything that was asked for; the exit code."""
    key_of_job = job_run_key(shared=world.distributed)
    if given["run_key"]:
        check_run_key(given["run_key"])
    changes = {name: given.pop(name) for name in FIELD_NAMES}
    recipe = dataclasses.replace(entry.recipe, **{k: v for k, v in changes.items() if v is not None})
    seeds, sweep, point = series
    planned = plan(recipe, seeds, sweep)
    if point is not None:
        planned = [pick(planned, point)]
    if world.distributed and len(planned) > 1:
        raise UserError(f"--world-size {world.size} trains one run; start a command for each seed or value")
    for item in planned:
        entry.check(item.recipe)
        world.check_batch(item.recipe.batch_size)

    def options() -> RunOptions:
        from cnn_jobs.runs.setup import RunOptions
        from cnn_jobs.tracking.connection import tracking_uri

        return RunOptions(
            tracking_uri=tracking_uri(),
            ship_deadline_s=given.pop("ship_deadline"),
            checkpoint_every_s=given.pop("checkpoint_every"),
            state_outlives_process=given.pop("durable_state"),
            key_from_job=given["run_key"] == key_of_job != "",
            **given,
        )

    if not world.distributed:
        return exit_code(_run(entry, planned, options(), data, monitor, stop, say))
    with company(world, stop) as peers:
        if world.rank:
            _follow(entry, planned[0].recipe, options(), data, monitor, stop, peers)
            errors: list[CnnJobsError] = []
        else:
            errors = _run(entry, planned, options(), data, monitor, stop, say, peers)
        peers.end(exit_code(errors), str(errors[0]) if errors else "finished")
    return exit_code(errors)


def _run(
    entry: Task,
    planned: Sequence[Planned],
    options: RunOptions,
    data: str,
    monitor: Watcher,
    stop: StopRequest,
    say: _Speaker,
    peers: Company | None = None,
) -> list[CnnJobsError]:
    """Trains, and tells what came of it; the errors, one for each run that did not finish."""
    from cnn_jobs.cli.console import how_to_go_on, print_results, watcher
    from cnn_jobs.data.sources import open_dataset
    from cnn_jobs.runs.series import run_series

    logs.capture_libraries()
    dataset = open_dataset(data)
    # The monitor first: what the others say of a moment carries its step.
    watchers = Watchers(monitor, watcher())
    results, errors = run_series(
        entry, planned, options, dataset, watchers, stop, lambda line: say(f"error: {line}"), peers
    )
    stop.hold()  # what is left is to say what came of it
    print_results(entry, results, options, synthetic=dataset.synthetic)
    if errors and len(planned) == 1:
        say(f"error: {errors[0]}")
    for error in errors:
        for note in [*getattr(error, "__notes__", ()), *how_to_go_on(error, options)]:
            click.echo(note, err=True)
    return errors


def _follow(
    entry: Task,
    recipe: Recipe,
    options: RunOptions,
    data: str,
    monitor: Watcher,
    stop: StopRequest,
    peers: Company,
) -> None:
    """Trains with rank 0, which does all the rest."""
    from cnn_jobs.cli.console import watcher
    from cnn_jobs.data.sources import open_dataset
    from cnn_jobs.runs.worker import follow_task

    logs.capture_libraries()
    follow_task(entry, recipe, options, open_dataset(data), Watchers(monitor, watcher()), stop, peers)


def _shared() -> bool:
    """Whether the processes of this command's Job train one run."""
    return bool(click.get_current_context().params.get("world_size", 1) > 1)
