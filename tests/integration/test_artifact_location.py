"""An experiment whose artifacts belong into a folder of the MLflow server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.survival import SMALL, Lab
from tests.helpers.tracking import client, only_run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


def elsewhere(folder: Path) -> list[str]:
    """The beginning of a command that sees another disk at ``folder``, as another machine does."""
    command = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    return command


@pytest.mark.parametrize("shared", [True, False])
def test_run_whose_files_the_server_does_not_see_is_refused(lab: Lab, tmp_path: Path, shared: bool) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    client(lab.uri).create_experiment(tmp_path.name, artifact_location=f"file://{folder}")
    train = [sys.executable, "-m", "cnn_jobs", "train", "task2", "--data", str(lab.data), *map(str, SMALL)]
    command = [*([] if shared else elsewhere(folder)), *train, "--experiment", tmp_path.name]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": lab.uri, "CNN_JOBS_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    run = only_run(lab.uri, tmp_path.name)
    if shared:
        assert (done.returncode, run.info.status) == (0, "FINISHED"), done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: artifacts belong into file://{folder}")
    assert run.info.status == "FAILED"
    assert "use a new --experiment" in run.data.tags["cnn_jobs.reason"]
    assert list(folder.rglob("*.pt")) == []
