"""``FIELD=VALUE`` as options of the command that a pod calls, checked by that command itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cnn_jobs.errors import UserError

# What the manifest, or an option of 'submit', says already; the reason stands in the error.
DECIDED = {
    "device": "--gpu decides it",
    "state_dir": "the manifest has its place",
    "durable_state": "--state-volume decides it",
    "run_key": "it is the Job's UID",
    "resume": "a new Job is a new run, and its pods go on with it by themselves",
    "seeds": "use --seeds",
    "sweep": "use --sweep",
    "point": "use --sweep or --seeds",
    "metrics_port": "network policies and the PodMonitor know it",
    "metrics_host": "network policies and the PodMonitor know it",
    "out": "the manifest has its place",
    "log": "what a pod writes is kept in MLflow",
}


def command_of(args: Sequence[str]) -> click.Command:
    """The command that a pod with these ``args`` calls."""
    from cnn_jobs.cli import cli

    group: click.Group = cli
    for word in args:
        command = group.get_command(click.Context(group), word)
        assert command is not None
        if not isinstance(command, click.Group):
            return command
        group = command
    raise AssertionError(f"{args} names no command")


def pod_options(command: click.Command, pairs: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """``["lr=1e-3", "fast=true"]`` to ``["--lr", "1e-3", "--fast"]``, and the values by field.

    Raises ``UserError`` (exit 2) for a field that is none, is given twice or is not for the user to set, and for a
    value that the option does not take.
    """
    options = {each.name: each for each in command.params if isinstance(each, click.Option) and each.name}
    words: list[str] = []
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name in options and name in DECIDED:
            raise UserError(f"--set {pair}: {name} cannot be set here, {DECIDED[name]}")
        if not equals or name not in options:
            valid = ", ".join(sorted(each for each in options if each not in DECIDED))
            raise UserError(f"--set is '{pair}', but must be FIELD=VALUE with a field of {valid}")
        if name in values:
            raise UserError(f"--set names {name} twice; give each field once")
        option = options[name]
        try:
            values[name] = option.type(text, param=option, ctx=click.Context(command))
        except click.BadParameter as error:
            raise UserError(f"--set {pair}: {error.message}") from error
        if option.is_flag:
            words.append((option.opts if values[name] else option.secondary_opts)[0])
        else:
            words += [option.opts[0], text]
    return words, values
