"""The files of Jobs: their text, and how it comes to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnn_jobs.cluster.comments import comments, comments_of, header
from cnn_jobs.cluster.manifest import documents
from cnn_jobs.cluster.plans import Plan
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.yaml_text import to_yaml
from cnn_jobs.files import write_text


def text_of(plan: Plan, settings: Settings) -> str:
    """A file, whole: the same plan and settings give the same text."""
    # The Job is the first of them, and has the comments.
    first, *others = documents(plan, settings)
    parts = [to_yaml(first, comments(plan, settings))]
    parts += [to_yaml(each, comments_of(each["kind"])) for each in others]
    return header(plan, settings) + "---\n".join(parts)


def write_files(plans: Sequence[Plan], settings: Settings, folder: Path) -> list[Path]:
    """Writes each plan's file to ``folder``, whole; returns their paths.

    Raises ``DiskFullError`` (exit 1) or ``StateDirError`` (exit 2) for what the disk refuses.
    """
    return [write_text(folder / plan.file, text_of(plan, settings)) for plan in plans]
