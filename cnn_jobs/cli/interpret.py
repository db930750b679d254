"""``cnn-jobs interpret``: tasks 4b and 4c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.options import option, state_dir_option
from cnn_jobs.errors import UserError
from cnn_jobs.tasks import get_interpretation


@click.command(context_settings={"show_default": True})
@click.argument("task")
@option(
    "image",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default="one that is drawn",
    help="Picture to show to the network.",
)
@option(
    "weights",
    default="imagenet",
    help="Of ResNet18: imagenet, none (random), a file or s3://bucket/key of a state dict.",
)
@option("run", default="", show_default="none", help="Id of a run of ours, to look at its network instead.")
@option(
    "filters",
    default="",
    show_default="the course report's, of a small layer the first",
    help="Which filters or channels: 0-9 or 14,26,32.",
)
@option("layer", default="", show_default="task4b: the first convolution, task4c: the last", help="Name of the layer.")
@option(
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="a folder named after the task",
    help="Where pictures and tables go.",
)
@option("log", is_flag=True, default=True, help="Keep them in an MLflow run, too.")
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@state_dir_option
@click.pass_context
def interpret(context: click.Context, /, task: str, **given: Any) -> None:
    """Show what a network has learned; nothing is trained.

    \b
    task4b: filters of the first convolution beside what they make of a picture,
            each measured: direction, frequency, colour, what it reacts to.
    task4c: activations of the last convolutional layer, how sparse they are,
            and what in the picture speaks for the network's answer (Grad-CAM).
    """
    entry = get_interpretation(task)
    source = click.core.ParameterSource
    if given["run"] and context.get_parameter_source("weights") not in (source.DEFAULT, None):
        raise UserError("--run and --weights name two networks; leave one of them out")
    channels = parse_channels(given["filters"])

    from cnn_jobs.interpret.interpretation import Request
    from cnn_jobs.interpret.interpretation import interpret as show
    from cnn_jobs.tracking.connection import tracking_uri

    shown = show(
        Request(
            task=entry,
            image=given["image"],
            weights=given["weights"],
            run_id=given["run"],
            channels=channels,
            layer=given["layer"],
            out=given["out"] or Path(task),
            tracking_uri=tracking_uri(),
            experiment=given["experiment"],
            state_dir=given["state_dir"],
            log=given["log"],
        )
    )
    what = "Filter" if task == "task4b" else "Channel"
    listing = table(what, "Measured", "Strongest in", title=shown.title)
    for row in shown.summary:
        listing.add_row(*row)
    out = console()
    out.print(listing)
    if shown.note:
        out.print(f"note: {shown.note}", markup=False)
    for path in shown.files:
        out.print(f"  {path}", markup=False)
    if shown.where:
        out.print(f"In MLflow: {shown.where}", markup=False, soft_wrap=True)


def parse_channels(text: str) -> tuple[int, ...]:
    """``0-9`` or ``14,26,32`` to numbers, "" to none. Raises ``UserError`` for anything else, and for a repetition."""
    from cnn_jobs.recipe import parse_numbers

    return tuple(parse_numbers(text, "--filters", "14,26,32")) if text else ()
