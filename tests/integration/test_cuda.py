"""Runs on a CUDA device that are killed and continued, and two processes on one device: ``pytest -m gpu``,
docs/cuda.md."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.local_server.server import free_port, start_server, stop_server
from tests.helpers.datasets import striped_dataset
from tests.helpers.survival import EXIT_CODES, BaseLab, Outcome, compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
ROOT = Path(__file__).resolve().parents[2]
# 3 steps an epoch, validated after 1, 3, 4, 6 and so on.
SMALL = ("--epochs", 4, "--batch-size", 12, "--early-stop-count", 0, "--threads", 1, "--device", "cuda")


@dataclass
class CudaLab(BaseLab):
    """New processes: the child of a process that has used the device cannot use it."""

    def start(
        self, task: str, key: str, *more: object, hook: str = "cheap_outputs", hook_args: Sequence[Any] = (), **env: str
    ) -> subprocess.Popen[str]:
        """Starts one attempt."""
        call = f"hooks.{hook}(*{list(hook_args)!r})"
        program = f"from tests.helpers import hooks; {call}; from cnn_jobs.cli import main; main()"
        arguments = ["train", task, "--data", self.data, "--experiment", task, *SMALL, *more]
        folder = self.folder / f"work-{key}-{env.get('RANK', 0)}-{time.monotonic_ns()}"
        folder.mkdir()
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": _path(), "PYTHONWARNINGS": "ignore", **self.environment(key), **env},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, task: str, key: str, *more: object, **settings: Any) -> tuple[int, str]:
        """One attempt, to its end: exit status and output."""
        return wait(self.start(task, key, *more, **settings))

    def pair(self, task: str, key: str, *more: object, hooks: dict[int, tuple[str, list[Any]]]) -> list[Any]:
        """Two processes on one device, to their ends."""
        port = free_port()
        world = {"CNN_JOBS_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = []
        for rank in (0, 1):
            hook, hook_args = hooks.get(rank, ("gloo_on_cuda", []))
            own = {"RANK": str(rank), "CNN_JOBS_STATE_DIR": str(self.folder / f"state-{key}-{rank}")}
            started.append(self.start(task, key, *more, hook=hook, hook_args=hook_args, **world, **own))
        return [wait(each) for each in started]


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process, once it has ended."""
    try:
        text, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, text


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def cuda_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudaLab]:
    folder = tmp_path_factory.mktemp("cuda")
    write_prepared(striped_dataset(size=32), folder / "small.npz", compressed=False)
    server = start_server(folder / "server")
    try:
        yield CudaLab(server.url, folder / "small.npz", folder)
    finally:
        stop_server(folder / "server")


@pytest.fixture(scope="module")
def reference(cuda_lab: CudaLab) -> Outcome:
    code, text = cuda_lab.train("task3e", "reference")
    assert code == 0, text
    outcome = cuda_lab.outcome("task3e", "reference")
    assert torch.cuda.get_device_name(0) in outcome.tags["cnn_jobs.device"]
    return outcome


@pytest.mark.parametrize(
    ("step", "sent", "lose"),
    [(2, "SIGKILL", True), (7, "SIGKILL", False), (7, "SIGTERM", True), (10, "SIGTERM", False)],
)
def test_killed_run_continues_as_the_same_run(
    cuda_lab: CudaLab, reference: Outcome, step: int, sent: str, lose: bool
) -> None:
    key = f"{sent}-{step}-{lose}"
    code, text = cuda_lab.train("task3e", key, hook="signal_at_step", hook_args=[step, sent])
    assert code == EXIT_CODES[sent], text
    if lose:
        cuda_lab.lose_state(key)
    code, text = cuda_lab.train("task3e", key)
    assert code == 0, text
    outcome = cuda_lab.outcome("task3e", key)
    assert compare(reference, outcome) == []
    assert (outcome.status, outcome.tags["cnn_jobs.attempt"]) == ("FINISHED", "2")
    assert "cnn_jobs.continued_elsewhere" not in outcome.tags


def test_killed_task4a_continues_as_the_same_run(cuda_lab: CudaLab) -> None:
    random = ("--weights", "none", "--epochs", 1)
    assert cuda_lab.train("task4a", "transfer", *random)[0] == 0
    code, text = cuda_lab.train("task4a", "transfer-killed", *random, hook="signal_at_step", hook_args=[2, "SIGKILL"])
    assert code == EXIT_CODES["SIGKILL"], text
    assert cuda_lab.train("task4a", "transfer-killed", *random)[0] == 0
    reference, killed = (cuda_lab.outcome("task4a", key) for key in ("transfer", "transfer-killed"))
    assert compare(reference, killed) == []


@pytest.fixture(scope="module")
def two(cuda_lab: CudaLab) -> Outcome:
    """Two processes on one device, by gloo: NCCL needs a device for each."""
    both = cuda_lab.pair("task3d-batchnorm", "two", hooks={})
    assert [code for code, _ in both] == [0, 0], both
    return cuda_lab.outcome("task3d-batchnorm", "two")


def test_two_processes_with_synchronised_batch_norm_train_as_one(cuda_lab: CudaLab, two: Outcome) -> None:
    """docs/distributed.md: 1e-4 of a loss in the first steps; later Adam amplifies rounding differences."""
    code, text = cuda_lab.train("task3d-batchnorm", "one")
    assert code == 0, text
    one = cuda_lab.outcome("task3d-batchnorm", "one")
    ours, theirs = two.losses(), one.losses()
    assert ours.keys() == theirs.keys() == set(range(1, 13))
    printed = [f"{abs(ours[step] - theirs[step]):.1e}" for step in sorted(ours)]
    print("losses of two processes differ from those of one by", *printed)  # noqa: T201
    assert [ours[step] for step in (1, 2, 3)] == pytest.approx([theirs[step] for step in (1, 2, 3)], rel=1e-4)
    # BatchNorm's running statistics are of the whole batch.
    for name in ("norm1.running_mean", "norm1.running_var"):
        torch.testing.assert_close(two.state["model"][name], one.state["model"][name], rtol=1e-2, atol=1e-3)
    assert two.tags["cnn_jobs.world_size"] == "2"


def test_two_stopped_processes_resume_to_the_same_bits(cuda_lab: CudaLab, two: Outcome) -> None:
    both = cuda_lab.pair("task3d-batchnorm", "stopped", hooks={1: ("gloo_on_cuda_signal_before_step", [7, "SIGTERM"])})
    assert [code for code, _ in both] == [75, 75], both
    both = cuda_lab.pair("task3d-batchnorm", "stopped", hooks={})
    assert [code for code, _ in both] == [0, 0], both
    assert compare(two, cuda_lab.outcome("task3d-batchnorm", "stopped")) == []


def test_two_processes_on_one_device_are_refused_for_nccl(cuda_lab: CudaLab) -> None:
    plain = ("cheap_outputs", [])
    both = cuda_lab.pair("task2", "shared", hooks={0: plain, 1: plain})
    assert [code for code, _ in both] == [2, 2], both
    for _, text in both:
        assert "one process per device" in text.strip().splitlines()[-1]
