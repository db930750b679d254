"""``cnn-jobs interpret``: tasks 4b and 4c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.options import option, state_dir_option
from cnn_jobs.errors import UserError
from cnn_jobs.recipe import parse_numbers
from cnn_jobs.tasks import get_interpretation


@click.command(context_settings={"show_default": True})
@click.argument("task")
@option(
    "image",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default="a drawn picture",
    help="Picture to show to the network.",
)
@option(
    "weights",
    default="imagenet",
    help="Weights of ResNet18: imagenet, none (random), or a state dict in a file or at s3://bucket/key.",
)
@option("run", default="", show_default="none", help="Id of a training run: show its network instead of ResNet18.")
@option(
    "filters",
    default="",
    show_default="the course report's; the first ones of a smaller layer",
    help="Which filters or channels: 0-9 or 14,26,32.",
)
@option("layer", default="", show_default="task4b: the first convolution, task4c: the last", help="Name of the layer.")
@option(
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="a folder named after the task",
    help="Folder for pictures and tables.",
)
@option("log", is_flag=True, default=True, help="Store them in an MLflow run as well.")
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@state_dir_option
@click.pass_context
def interpret(context: click.Context, /, task: str, **given: Any) -> None:
    """Show what a network has learned; nothing is trained.

    \b
    task4b: filters of the first convolution and their activations for a picture,
            with direction, frequency, colour and strongest region of each.
    task4c: activations of the last convolutional layer, how sparse they are,
            and which parts of the picture support the network's answer (Grad-CAM).
    """
    entry = get_interpretation(task)
    source = click.core.ParameterSource
    if given["run"] and context.get_parameter_source("weights") not in (source.DEFAULT, None):
        raise UserError("--run and --weights name two networks; leave one of them out")
    filters = tuple(parse_numbers(given["filters"], "--filters", "14,26,32")) if given["filters"] else ()

    from cnn_jobs.interpret import interpretation
    from cnn_jobs.tracking.connection import tracking_uri

    given |= {"filters": filters, "out": given["out"] or Path(task)}
    result = interpretation.interpret(interpretation.InterpretRequest(task=entry, tracking_uri=tracking_uri(), **given))
    listing = table("Filter" if task == "task4b" else "Channel", "Measured", "Strongest in", title=result.title)
    for each in result.facts:
        listing.add_row(str(each.index), each.description, each.region)
    out = console()
    out.print(listing)
    if result.note:
        out.print(f"note: {result.note}", markup=False)
    for path in result.files:
        out.print(f"  {path}", markup=False)
    if result.where:
        out.print(f"In MLflow: {result.where}", markup=False, soft_wrap=True)
