"""The documents agree with the program: commands, targets, files, links and figures."""

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
    """Commands in the console blocks, without the prompt."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines]


def commands_of(page: str) -> list[list[str]]:
    """The arguments of every cnn-jobs command in a page, in blocks and between backticks; none with placeholders."""
    text = (ROOT / page).read_text()
    candidates = shell_lines(text) + re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in candidates:
        match = re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?cnn-jobs (.+)", line)
        if match and "--help" not in match[1] and not re.search(r"[A-Z]{3,}|\.\.\.", match[1]):
            found.append(shlex.split(match[1].partition(" | ")[0]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted_by_the_program(page: str) -> None:
    commands = commands_of(page)
    assert page != "README.md" or len(commands) >= 5
    for args in commands:
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


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", README)) - {"and"}
    assert {"local-run", "test", "test-all", "help", "setup", "local-stop"} <= named
    assert named <= targets


def test_files_of_the_tree_exist() -> None:
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


def test_link_targets_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / page).read_text()):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_results_are_rendered_from_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(real_results.JSON_FILE.read_text())
    report = real_results.read(content)  # takes seconds, and both pages need it
    monkeypatch.setattr(real_results, "read", lambda content: report)
    assert real_results.PAGE.read_text() == real_results.page(content)
    assert real_results.readme(README, content) == README
    # task4a needs ImageNet's weights, which were not available: docs/transfer.md.
    assert {run["params"]["task"] for run in content["runs"] if run["params"]} == set(TASKS) - {"task4a"}
    for picture in re.findall(r"\]\((plots/[^)]*)\)", real_results.PAGE.read_text()):
        assert (ROOT / "docs" / picture).is_file(), picture


def test_pages_have_no_path_of_a_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(^|[\s`\"'(])/(root|home|work|Users)/", (ROOT / page).read_text()), page
