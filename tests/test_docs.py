"""What the documents say is what the program does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from benchmarks import real_results
from cnn_jobs.cli import COMMANDS, cli
from cnn_jobs.tasks import INTERPRETATIONS, TASKS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]


def shell_lines(text: str) -> list[str]:
    """Lines of console blocks that a reader would type, without the prompt."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines]


def commands_of(page: str) -> list[list[str]]:
    """Every call of cnn-jobs in a page, in its blocks and between backticks, as its arguments."""
    text = (ROOT / page).read_text()
    candidates = shell_lines(text) + re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in candidates:
        match = re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?cnn-jobs (.+)", line)
        if (
            match and "--help" not in match[1] and not re.search(r"[A-Z]{3,}|\.\.\.", match[1])
        ):  # TASK, URI: a placeholder
            found.append(shlex.split(match[1].partition(" | ")[0]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_page_is_one_that_the_program_takes(page: str) -> None:
    for args in commands_of(page):
        with cli.make_context("cnn-jobs", list(args), resilient_parsing=False) as context:
            name, command, rest = cli.resolve_command(context, context._protected_args + context.args)
            assert name in COMMANDS, args
            while isinstance(command, click.Group) and rest:
                _, command, rest = command.resolve_command(context, rest)
            assert command is not None
            with command.make_context(name, list(rest), parent=context) as inner:
                given = inner.params.get("task") or ()
                for task in [given] if isinstance(given, str) else given:
                    assert task in TASKS | INTERPRETATIONS, args


def test_the_readme_has_commands_to_check() -> None:
    assert len(commands_of("README.md")) >= 5


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", README)) - {"and"}
    assert {"local-run", "test", "test-all", "help", "setup", "local-stop"} <= named
    assert named <= targets


def test_everything_in_the_file_tree_exists() -> None:
    (tree,) = re.findall(r"```\n(cnn_jobs/\n.*?)```", README, flags=re.DOTALL)
    folder, checked = ROOT, 0
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        if not line.startswith(" "):
            folder = ROOT
        for name in names:
            path = folder / name
            assert path.exists(), line
            checked += 1
        if not line.startswith(" ") and names == ["cnn_jobs/"]:
            folder = ROOT / "cnn_jobs"
    assert checked > 20


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / page).read_text()):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_pages_of_results_are_what_their_figures_render() -> None:
    content = json.loads(real_results.JSON_FILE.read_text())
    assert real_results.PAGE.read_text() == real_results.page(content)
    assert real_results.readme(README, content) == README
    # task4a needs ImageNet's weights, which were not at hand: docs/transfer.md.
    assert {run["params"]["task"] for run in content["runs"] if run["params"]} == set(TASKS) - {"task4a"}
    for picture in re.findall(r"\]\((plots/[^)]*)\)", real_results.PAGE.read_text()):
        assert (ROOT / "docs" / picture).is_file(), picture


def test_no_path_of_a_machine_is_in_a_page() -> None:
    for page in PAGES:
        assert not re.search(r"(^|[\s`\"'(])/(root|home|work|Users)/", (ROOT / page).read_text()), page
