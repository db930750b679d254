"""Command line options that commands share; those of the recipe are made from its fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import click

from cnn_jobs.monitoring import logs
from cnn_jobs.recipe import Recipe
from cnn_jobs.system.environment import in_pod

Command = Callable[..., Any]


def env_name(option: str) -> str:
    """The environment variable of an option: ``state_dir`` is ``CNN_JOBS_STATE_DIR``."""
    return f"CNN_JOBS_{option.upper()}"


def option(name: str, *, variable: str = "", **settings: Any) -> Callable[[Command], Command]:
    """A click option named ``name`` (underscores become dashes) with its environment variable, which is named after
    ``variable`` where an option of another command has the same name and another meaning."""
    flag = "--" + name.replace("_", "-")
    if settings.get("is_flag"):
        flag += "/--no-" + name.replace("_", "-")
    return click.option(flag, name, envvar=env_name(variable or name), show_envvar=True, **settings)


def no_option(name: str, help_text: str) -> Callable[[Command], Command]:
    """A flag ``--no-NAME`` without an opposite, with its environment variable."""
    full = f"no_{name}"
    flag = "--" + full.replace("_", "-")
    return click.option(
        flag, full, is_flag=True, default=False, envvar=env_name(full), show_envvar=True, help=help_text
    )


def default_state_dir() -> str:
    """The user's state folder for this program."""
    import platformdirs

    return str(platformdirs.user_state_path("cnn-jobs"))


def state_dir_option(command: Command) -> Command:
    """Adds ``--state-dir``."""
    return option(
        "state_dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_state_dir,
        show_default="your state folder",
        help="Checkpoints and files of runs.",
    )(command)


def log_format_option(command: click.Command) -> click.Command:
    """Adds ``--log-format`` to a command, or to those of a group."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            log_format_option(each)
        return command

    def choose(ctx: click.Context, param: click.Parameter, value: str) -> None:
        if value != logs.format_of_environment():  # which 'main' has applied already
            logs.configure(value)

    if not any(param.name == "log_format" for param in command.params):
        command.params.append(
            click.Option(
                ["--log-format"],
                type=click.Choice(logs.FORMATS),
                default=logs.AUTO,
                envvar=env_name("log_format"),
                show_envvar=True,
                is_eager=True,
                expose_value=False,
                callback=choose,
                help="Lines of text, or a JSON object a line; auto: JSON in a pod.",
            )
        )
    return command


def monitoring_options(command: Command) -> Command:
    """Adds the options of the metrics page and the Pushgateway."""
    for add in (
        option(
            "pushgateway",
            default="",
            metavar="URL",
            help="Prometheus Pushgateway that gets the outcome at the end, by task.",
        ),
        option(
            "metrics_linger",
            type=click.FloatRange(min=0),
            default=0.0,
            help="Seconds to wait at the end until Prometheus has scraped the last values.",
        ),
        option(
            "metrics_host",
            default=lambda: "0.0.0.0" if in_pod() else "127.0.0.1",
            show_default="127.0.0.1, in a pod 0.0.0.0",
            help="Address of the metrics page.",
        ),
        option(
            "metrics_port",
            type=click.IntRange(0, 65535),
            default=lambda: 9090 if in_pod() else 0,
            show_default="0, in a pod 9090",
            help="Port of the metrics page for Prometheus; 0: none.",
        ),
    ):
        command = add(command)
    return command


def recipe_options(command: Command) -> Command:
    """Adds an option for every recipe field; its value is ``None`` where it is not given, for the task's own."""
    hints = get_type_hints(Recipe)
    for field in reversed(fields(Recipe)):
        choices = field.metadata["choices"]
        kind = click.Choice(choices) if choices else hints[field.name]
        text = f"{field.metadata['help']} [default: the task's]"
        command = option(field.name, type=kind, default=None, help=text)(command)
    return command
