"""Child processes of the benchmarks, and their environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = "import torch, torchvision, mlflow"


def environment(folder: Path) -> dict[str, str]:
    """The environment of a ``cnn-jobs`` that records in ``folder``, without the user's own settings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("CNN_JOBS_", "MLFLOW_"))}
    # benchmarks.run sets it for its own process; the shipped command sets its own.
    inherited.pop("GOMP_SPINCOUNT", None)
    return {
        **inherited,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "CNN_JOBS_STATE_DIR": str(folder / "state"),
        "CNN_JOBS_CACHE_DIR": str(folder / "cache"),
    }


def prepare_mlflow(folder: Path, experiment: str) -> None:
    """Creates the database, which takes seconds, and the experiment; its artifacts go to ``folder``, too."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())


@contextmanager
def python(*args: str, env: dict[str, str], **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process at the repository's root; killed at the end if it still runs."""
    process = subprocess.Popen([sys.executable, *args], cwd=ROOT, env=env, text=True, **settings)
    try:
        with process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
    finally:
        if process.poll() is None:
            process.kill()


def json_from(args: Sequence[str], env: dict[str, str]) -> Any:
    """The last line that a Python process prints, parsed as JSON. Raises ``RuntimeError`` with the end of its stderr if
    it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        with python(*args, env=env, stdout=subprocess.PIPE, stderr=errors) as process:
            output, _ = process.communicate()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(args)}: exit code {process.returncode}: {errors.read()[-2000:]}")
    return json.loads(output.strip().splitlines()[-1])
