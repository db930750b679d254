from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_type_hints

import click
import pytest
from click.testing import CliRunner

from cnn_jobs.cli import cli
from cnn_jobs.cli.options import env_name, option, recipe_options
from cnn_jobs.cli.train import train
from cnn_jobs.recipe import Recipe


def commands(group: click.Group = cli, path: str = "cnn-jobs") -> Iterator[tuple[str, click.Command]]:
    """Every command and group of the program, by its full name."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands())
OPTIONS = [
    pytest.param(entry, id=f"{path} --{entry.name}")
    for path, command in COMMANDS.items()
    for entry in command.params
    if isinstance(entry, click.Option) and entry.name != "version"
]
TRAIN = {entry.name: entry for entry in train.params if isinstance(entry, click.Option)}


@click.command()
@recipe_options
def show(**given: Any) -> None:
    click.echo(repr(given))


def test_the_options_made_from_the_recipe_are_its_fields_in_their_order() -> None:
    assert [entry.name for entry in show.params] == [field.name for field in fields(Recipe)]


def test_train_offers_every_field_of_the_recipe_and_what_it_has_besides_is_no_field() -> None:
    of_the_recipe = [name for name, entry in TRAIN.items() if "the task's" in (entry.help or "")]
    assert of_the_recipe == [field.name for field in fields(Recipe)]


@pytest.mark.parametrize("field", fields(Recipe), ids=lambda field: field.name)
def test_an_option_has_the_type_of_its_field_and_no_default_of_its_own(field: Any) -> None:
    entry = TRAIN[field.name]
    assert entry.opts == ["--" + field.name.replace("_", "-")]
    assert entry.get_default(click.Context(train)) is None
    assert entry.help is not None
    assert field.metadata["help"] in entry.help
    if field.metadata["choices"]:
        assert isinstance(entry.type, click.Choice)
        assert tuple(entry.type.choices) == field.metadata["choices"]
    else:
        assert str(entry.type.convert("1", entry, None)) in ("1", "1.0")
        assert type(entry.type.convert("1", entry, None)) is get_type_hints(Recipe)[field.name]


@pytest.mark.parametrize("entry", OPTIONS)
def test_every_option_has_its_environment_variable_and_a_help_text(entry: click.Option) -> None:
    # A pod's image and a picture are both called so: the variable of the first is that which a pod has of its own.
    own = "container_image" if entry.metavar == "NAME:TAG" else str(entry.name)
    assert entry.envvar == f"CNN_JOBS_{own.upper()}"
    assert entry.show_envvar
    assert entry.help
    assert entry.help.strip()[0].isupper()
    assert entry.opts[0] == "--" + str(entry.name).replace("_", "-")


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_says_what_it_does(path: str) -> None:
    result = CliRunner().invoke(COMMANDS[path], ["--help"], catch_exceptions=False)
    assert result.exit_code == 0
    assert COMMANDS[path].help
    assert COMMANDS[path].get_short_help_str(200).endswith(".")


def test_a_value_comes_from_the_command_line_else_from_the_environment_else_from_nowhere() -> None:
    environment = {"CNN_JOBS_LR": "0.5", "CNN_JOBS_EPOCHS": "7"}
    result = CliRunner().invoke(show, ["--epochs", "3"], env=environment, catch_exceptions=False)
    assert "'epochs': 3," in result.output
    assert "'lr': 0.5," in result.output
    assert "'batch_size': None," in result.output


@pytest.mark.parametrize(
    "arguments", [["--epochs", "many"], ["--lr", "fast"], ["--optimizer", "rmsprop"], ["--learning-rate", "1"]]
)
def test_what_is_no_value_of_a_field_is_refused_with_exit_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_a_sweep_in_the_environment_is_a_list_parted_by_spaces() -> None:
    environment = {"CNN_JOBS_SWEEP": "lr=1e-3,1e-4 batch_size=32,64"}
    runner = CliRunner(env=environment)
    with runner.isolation(env=environment), train.make_context("train", ["task2"]) as context:
        assert context.params["sweep"] == ("lr=1e-3,1e-4", "batch_size=32,64")


def test_a_flag_can_be_switched_off_again() -> None:
    @click.command()
    @option("fast", is_flag=True, default=False, help="Fast.")
    def command(fast: bool) -> None:
        click.echo(fast)

    runner = CliRunner()
    assert runner.invoke(command, ["--fast"]).output == "True\n"
    assert runner.invoke(command, ["--no-fast"], env={"CNN_JOBS_FAST": "1"}).output == "False\n"
    assert runner.invoke(command, [], env={"CNN_JOBS_FAST": "1"}).output == "True\n"


def test_the_name_of_an_environment_variable() -> None:
    assert env_name("state_dir") == "CNN_JOBS_STATE_DIR"


def test_no_variable_has_two_meanings() -> None:
    """What is exported for one command must not break another."""
    meanings: dict[str, set[str]] = {}
    for parameter in OPTIONS:
        (entry,) = parameter.values
        # A range of whole numbers is whole numbers.
        kind = type(entry.type).__name__.replace("IntRange", "IntParamType")
        meanings.setdefault(entry.envvar, set()).add(f"{kind} {entry.metavar}")
    assert {name: kinds for name, kinds in meanings.items() if len(kinds) > 1} == {}
    assert {"CNN_JOBS_IMAGE", "CNN_JOBS_CONTAINER_IMAGE"} <= meanings.keys()
