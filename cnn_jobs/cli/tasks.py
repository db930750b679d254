"""``cnn-jobs tasks``, ``describe`` and ``arithmetic``: the tasks, their networks, and the answers to task 1."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.options import option, state_dir_option
from cnn_jobs.networks import table as network_table
from cnn_jobs.system.files import write_text
from cnn_jobs.tasks import INTERPRETATIONS, TASKS, get_task


@click.command()
def tasks() -> None:
    """List the tasks: network, recipe, reference."""
    listing = table("Task", "What it trains", right=("Parameters", "Optimiser", "Course report"), unbroken=1)
    for task in TASKS.values():
        reference = task.reference.test_accuracy
        listing.add_row(
            task.name,
            task.title,
            f"{network_table.total_parameters(network_table.describe(task.network)):,}",
            f"{task.recipe.optimizer} {task.recipe.lr:g}",
            "-" if reference is None else f"{reference:.3f}",
        )
    out = console()
    out.print(listing)
    out.print("Optimiser with its learning rate; the course report's accuracy is on the test set.\n")
    shown = table("Task", "What 'cnn-jobs interpret' shows", unbroken=1)
    for each in INTERPRETATIONS.values():
        shown.add_row(each.name, each.title)
    out.print(shown)


@click.command()
@click.argument("task")
def describe(task: str) -> None:
    """Show a task's network as a table: layers, output shapes, parameters, costs.

    For images of 3x32x32 and 10 classes; the parameters are those of torch.
    """
    entry = get_task(task)
    layers = network_table.describe(entry.network)
    # For the 120 characters of a log line: narrow headers, and only the activation column may wrap.
    left, right = (
        tuple(each.title.replace(" ", "\n") for each in network_table.COLUMNS if each.right is right)
        for right in (False, True)
    )
    listing = table(*left, right=right, title=f"{entry.name}: {entry.title}")
    for column in listing.columns:
        column.no_wrap = column.header != "Activation"
        column.min_width = 0 if column.no_wrap else 10
    for layer in layers:
        listing.add_row(*network_table.cells(layer))
    out = console()
    out.print(listing)
    out.print(network_table.summary(layers))
    out.print(network_table.LEGEND)


@click.command(context_settings={"show_default": True})
@option("log", is_flag=True, default=False, help="Store the answers in an MLflow run as well.")
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@state_dir_option
def arithmetic(log: bool, experiment: str, state_dir: Path) -> None:
    """Answer task 1: sizes, paddings, kernels and parameters, each with its working.

    Where the course report gives another answer, the reason follows.
    """
    from cnn_jobs.course import task1

    answers, out = task1.answers(), console()
    for each in answers:
        out.print(f"\n[bold]{each.part}[/bold]  {each.question}")
        for line in each.working:
            out.print(f"    {line}", markup=False)
        out.print("    answer:", *(f"\n        {line}" for line in each.answer.splitlines()), markup=False, sep="")
        out.print(f"    report: {each.report} - {each.verdict}", markup=False)
    summary = table("Part", "Answer", "Course report", "", title="\nTask 1", unbroken=1)
    for each in answers:
        summary.add_row(each.part, each.short, each.report, "wrong" if each.mistake else "right")
    out.print(summary)
    if log:
        from cnn_jobs.tracking.connection import tracking_uri
        from cnn_jobs.tracking.document_run import log_documents

        where = log_documents(
            "task1",
            "task1",
            lambda folder: write_text(folder / "arithmetic.md", task1.as_markdown(answers)),
            tracking_uri=tracking_uri(),
            experiment=experiment,
            state_dir=state_dir,
        )
        out.print(f"In MLflow: {where}", markup=False)
