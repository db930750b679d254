"""Checkpoints on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from cnn_jobs.files import whole_file


def save_checkpoint(path: Path, content: dict[str, Any]) -> Path:
    """Writes ``content`` (plain values and tensors) whole or not at all; returns ``path``."""
    # Through memory: torch's own writer turns a full disk into a RuntimeError of C++ words.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with whole_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, on the CPU; runs no code from the file."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
