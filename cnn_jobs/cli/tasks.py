"""``cnn-jobs tasks`` and ``cnn-jobs describe``: the registry, read aloud."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from cnn_jobs.models.describe import COLUMNS, cells, total_parameters
from cnn_jobs.models.describe import describe as describe_network
from cnn_jobs.tasks import TASKS, get_task


@click.command()
def tasks() -> None:
    """List the tasks: network, recipe, reference."""
    table = Table("Task", "What it trains", "Parameters", "Optimiser", "Epochs", "Reference test acc.")
    for column in table.columns[2:]:
        column.justify = "right"
    for task in TASKS.values():
        recipe, reference = task.recipe, task.reference.test_accuracy
        early = f", early stop {recipe.early_stop_count}" if recipe.early_stop_count else ""
        table.add_row(
            task.name,
            task.title,
            f"{total_parameters(describe_network(task.network)):,}",
            f"{recipe.optimizer}, lr {recipe.lr:g}",
            f"{recipe.epochs}{early}",
            "-" if reference is None else f"{reference:.3f}",
        )
    Console().print(table)


@click.command()
@click.argument("task")
def describe(task: str) -> None:
    """Show a task's network as a table: layers, output shapes, parameters.

    For images of 3x32x32 and 10 classes; parameters agree with torch's.
    """
    entry = get_task(task)
    layers = describe_network(entry.network)
    table = Table(*COLUMNS, title=f"{entry.name}: {entry.title}", title_justify="left")
    table.columns[-1].justify = "right"
    for layer in layers:
        table.add_row(*cells(layer))
    console = Console()
    console.print(table)
    console.print(f"{total_parameters(layers):,} parameters", highlight=False)
