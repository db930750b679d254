"""``cnn-jobs arithmetic``: task 1 of the course, worked out."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_jobs.cli.options import option, state_dir_option
from cnn_jobs.cli.tables import console, table
from cnn_jobs.files import write_text


@click.command(context_settings={"show_default": True})
@option("log", is_flag=True, default=False, help="Keep the answers in an MLflow run, too.")
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@state_dir_option
def arithmetic(log: bool, experiment: str, state_dir: Path) -> None:
    """Answer task 1: sizes, paddings, kernels and parameters, each with its working.

    Where the course report says something else, the reason follows.
    """
    from cnn_jobs import task1

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
        from cnn_jobs.document_run import log_documents
        from cnn_jobs.tracking.connection import tracking_uri

        def write(folder: Path) -> None:
            write_text(folder / "arithmetic.md", task1.as_markdown(answers))

        where = log_documents(
            "task1", "task1", write, tracking_uri=tracking_uri(), experiment=experiment, state_dir=state_dir
        )
        out.print(f"In MLflow: {where}", markup=False)
