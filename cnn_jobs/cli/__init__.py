"""The ``cnn-jobs`` command. Subcommands are imported when called: ``--help`` needs neither torch nor MLflow."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import click

from cnn_jobs import __version__
from cnn_jobs.errors import CnnJobsError, StoppedError

# Not as 'logs': this package has a command of that name.
from cnn_jobs.monitoring import logs as log_format
from cnn_jobs.system.process import draw_files_only, dump_stacks_on_signal, open_closed_streams
from cnn_jobs.system.signals import exit_on_sigterm

# Command to its module in this package, and its line in 'cnn-jobs --help'.
COMMANDS = {
    "tasks": ("tasks", "List the tasks: network, recipe, reference."),
    "describe": ("tasks", "Show a task's network as a table: layers, output shapes, parameters."),
    "arithmetic": ("tasks", "Answer task 1: sizes and parameters, with the working."),
    "train": ("train", "Train a task; the run goes to MLflow."),
    "interpret": ("interpret", "Show filters, activations and where a network looks (tasks 4b, 4c)."),
    "runs": ("runs", "Compare the runs of an experiment in a table."),
    "report": ("report", "Compare runs: tables, intervals, tests and plots in one page."),
    "replay": ("runs", "Send the records of a run that MLflow lacks."),
    "reap": ("runs", "Repair the status of runs whose process is gone."),
    "reproduce": ("runs", "Train again what a run recorded, and compare."),
    "doctor": ("doctor", "Check data, MLflow, credentials, device and disk; advise what to do."),
    "manifests": ("manifests", "Write the Kubernetes Jobs from the registry, or check them."),
    "submit": ("submit", "Run a task on a Kubernetes cluster, as a new Job."),
    "status": ("jobs", "Show Jobs, their pods and their MLflow runs in a table."),
    "logs": ("jobs", "Show the log of a Job's pods, or follow it to the Job's end."),
    "cancel": ("jobs", "Stop a Job, and mark its runs as cancelled in MLflow."),
    "data": ("data", "Stage and check data sets."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cnn_jobs.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        from cnn_jobs.cli.options import log_format_option

        return log_format_option(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help text, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="cnn-jobs")
def cli() -> None:
    """Train small CNNs on CIFAR-10 and keep every run in MLflow.

    MLflow is the server or database of MLFLOW_TRACKING_URI; without it, mlflow.db in this folder.
    """


def _print_on_stderr(line: str) -> None:
    click.echo(line, err=True)


def print_error(error: CnnJobsError | StoppedError, print_line: Callable[[str], object] = _print_on_stderr) -> None:
    """Prints an error in one line, and its notes in one each."""
    for line in [f"error: {error}", *getattr(error, "__notes__", ())]:
        print_line(line)


def main() -> None:
    """Runs the command line; a known error is one line on stderr and its own exit code."""
    open_closed_streams()
    log_format.configure(log_format.format_of_environment())
    dump_stacks_on_signal()
    draw_files_only()
    exit_on_sigterm()
    try:
        cli()
    except CnnJobsError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except StoppedError as stopped:
        print_error(stopped)
        raise
