"""Devices, deterministic arithmetic and threads."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cnn_jobs.errors import DeviceError
from cnn_jobs.training.device import available_threads, configure_arithmetic, select_device

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a CPU affinity, as on Linux")


@no_cuda
def test_missing_cuda_device_is_a_one_line_error() -> None:
    with pytest.raises(DeviceError, match="no CUDA device; use --device cpu") as caught:
        select_device("cuda")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@no_cuda
@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_cpu_uses_channels_last(wanted: str) -> None:
    placement = select_device(wanted)
    assert placement.device == torch.device("cpu")
    assert placement.memory_format == torch.channels_last


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_cuda_uses_channels_last_only_for_speed(wanted: str) -> None:
    assert select_device(wanted).device.type == "cuda"
    assert select_device(wanted).memory_format == torch.contiguous_format
    assert select_device(wanted, fast=True).memory_format == torch.channels_last


@pytest.fixture
def _restored_arithmetic() -> Iterator[None]:
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:3]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[3:]


@pytest.mark.usefixtures("_restored_arithmetic")
@pytest.mark.parametrize("fast", [False, True])
def test_arithmetic_is_deterministic_unless_fast(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    configure_arithmetic(2, fast=fast)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled() is not fast
    assert torch.backends.cudnn.deterministic is not fast
    assert torch.backends.cudnn.benchmark is fast
    assert torch.backends.cudnn.allow_tf32 is fast


@pytest.mark.usefixtures("_restored_arithmetic")
def test_cublas_setting_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    configure_arithmetic(1)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@linux
@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # one and a half CPUs: two threads
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("6400000 100000\n", 8),  # more than the affinity allows
    ],
)
def test_quota_of_cgroup_version_2(tmp_path: Path, content: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_threads(tmp_path) == threads


@linux
@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "threads"), [("-1\n", 8), ("300000\n", 3), ("250000\n", 3), ("20000\n", 1)])
def test_quota_of_cgroup_version_1(tmp_path: Path, quota: str, threads: int) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert available_threads(tmp_path) == threads


@linux
@pytest.mark.usefixtures("eight_cpus")
def test_affinity_decides_without_a_cgroup(tmp_path: Path) -> None:
    assert available_threads(tmp_path / "missing") == 8


@linux
def test_affinity_of_the_process_is_read(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_threads(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_threads(tmp_path) == len(before)
