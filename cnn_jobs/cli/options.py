"""Command line options made from the recipe's fields, so that each is written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import click

from cnn_jobs.recipe import Recipe

Command = Callable[..., Any]


def env_name(option: str) -> str:
    """The environment variable of an option: ``state_dir`` is ``CNN_JOBS_STATE_DIR``."""
    return f"CNN_JOBS_{option.upper()}"


def option(name: str, **settings: Any) -> Callable[[Command], Command]:
    """A click option named after ``name`` (underscores are dashes), with its environment variable."""
    flag = "--" + name.replace("_", "-")
    if settings.get("is_flag"):
        flag += "/--no-" + name.replace("_", "-")
    return click.option(flag, name, envvar=env_name(name), show_envvar=True, **settings)


def default_state_dir() -> str:
    """Where runs keep their state unless told otherwise: the user's own state folder."""
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


def recipe_options(command: Command) -> Command:
    """Adds an option for every recipe field; one that is not given is ``None`` and leaves the task's own value."""
    hints = get_type_hints(Recipe)
    for field in reversed(fields(Recipe)):
        choices = field.metadata["choices"]
        kind = click.Choice(choices) if choices else hints[field.name]
        text = f"{field.metadata['help']} [default: the task's]"
        command = option(field.name, type=kind, default=None, help=text)(command)
    return command
