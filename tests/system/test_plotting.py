"""Plots do not depend on the settings of the user's matplotlib."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DRAW = """
import sys
from cnn_jobs.system.process import draw_files_only
draw_files_only()
from pathlib import Path
from matplotlib.figure import Figure
from cnn_jobs.system.plotting import save_figure
figure = Figure()
figure.add_subplot().plot([1, 2], label="line")
save_figure(figure, Path(sys.argv[1]))
"""


def draw(folder: Path, **environment: str) -> bytes:
    command = [sys.executable, "-W", "error", "-c", DRAW, "plot.png"]
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, timeout=60)
    return (folder / "plot.png").read_bytes()


def test_settings_of_the_user_have_no_effect(tmp_path: Path) -> None:
    plain, styled = tmp_path / "plain", tmp_path / "styled"
    plain.mkdir()
    styled.mkdir()
    (styled / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\n")
    assert draw(styled, MPLBACKEND="module://matplotlib_inline.backend_inline") == draw(plain)
