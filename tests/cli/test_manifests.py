from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cnn_jobs.cli import cli
from cnn_jobs.cluster.plans import all_plans
from cnn_jobs.errors import UserError
from tests.helpers.job_files import PATHS, ROOT, container_of


def call(*arguments: str, **environment: str) -> Result:
    result = CliRunner().invoke(cli, ["manifests", *arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit | UserError)
    return result


def test_rendering_passes_the_check_and_equals_the_committed_files(tmp_path: Path) -> None:
    rendered = call("render", "--out", str(tmp_path))
    assert rendered.exit_code == 0
    assert rendered.output.splitlines() == [str(tmp_path / plan.file) for plan in all_plans()]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in PATHS}
    checked = call("check", "--out", str(tmp_path))
    assert (checked.exit_code, checked.stdout) == (0, f"{len(PATHS)} Jobs in {tmp_path} are as rendered\n")


def test_only_named_jobs_are_rendered(tmp_path: Path) -> None:
    assert call("render", "--out", str(tmp_path), "task2", "report").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report-job.yaml", "task2-job.yaml"]


def test_a_difference_is_a_line_and_exit_code_1(tmp_path: Path) -> None:
    call("render", "--out", str(tmp_path))
    path = tmp_path / "task2-job.yaml"
    number = path.read_text().splitlines().index("  backoffLimit: 3") + 1
    path.write_text(path.read_text().replace("backoffLimit: 3", "backoffLimit: 6"))
    (tmp_path / "task4c-job.yaml").unlink()
    (tmp_path / "old-job.yaml").touch()
    result = call("check", "--out", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    render = "'cnn-jobs manifests render' rewrites it"
    assert result.stderr.splitlines() == [
        f"error: {path}: line {number}: expected 'backoffLimit: 3', found 'backoffLimit: 6'; {render}",
        f"error: {tmp_path}/task4c-job.yaml: missing, expected Job task4c; {render}",
        f"error: {tmp_path}/old-job.yaml: no Job of the registry has this file; delete it",
    ]


def test_options_apply_to_render_and_check(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--image", "registry.example/x:2", "--namespace", "team", "--no-gpu"]
    assert call("render", *options).exit_code == 0
    job = yaml.safe_load((tmp_path / "task4a-job.yaml").read_text())
    assert job["metadata"]["namespace"] == "team"
    assert container_of(job)["image"] == "registry.example/x:2"
    assert container_of(job)["args"] == ["train", "task4a", "--device", "cpu"]
    assert call("check", *options).exit_code == 0
    assert call("check", "--out", str(tmp_path)).exit_code == 1


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("CNN_JOBS_CONTAINER_IMAGE", "x:2", "image: x:2\n"),
        ("CNN_JOBS_NAMESPACE", "team", "namespace: team\n"),
        ("CNN_JOBS_GPU", "4", "nvidia.com/gpu: 4\n"),
        ("CNN_JOBS_NO_GPU", "1", "args: [train, task2, --device, cpu]\n"),
        ("CNN_JOBS_STATE_CLAIM", "runs", "claimName: runs\n"),
        ("CNN_JOBS_DATA_CLAIM", "pictures", "claimName: pictures\n"),
    ],
)
def test_options_have_environment_variables(variable: str, value: str, shown: str, tmp_path: Path) -> None:
    environment = {variable: value, "CNN_JOBS_OUT": str(tmp_path)}
    assert call("render", "task2", **environment).exit_code == 0
    assert shown in (tmp_path / "task2-job.yaml").read_text()


def test_no_gpu_and_gpu_0_are_the_same(tmp_path: Path) -> None:
    for option in (["--no-gpu"], ["--gpu", "0"], ["--no-gpu", "--gpu", "0"]):
        assert call("render", "--out", str(tmp_path / "-".join(option)), *option).exit_code == 0
    first, *others = [{each.name: each.read_text() for each in folder.iterdir()} for folder in tmp_path.iterdir()]
    assert others == [first, first]


def test_without_a_data_volume_no_job_fills_it(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--no-data-volume"]
    assert call("render", *options).exit_code == 0
    assert {path.name for path in PATHS} - {path.name for path in tmp_path.iterdir()} == {"prepare-data-job.yaml"}
    assert call("check", *options).stdout == f"{len(PATHS) - 1} Jobs in {tmp_path} are as rendered\n"
    assert "missing, expected Job prepare-data" in call("check", "--out", str(tmp_path)).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "--image", "cnn-jobs:latest"], "--image is 'cnn-jobs:latest'"),
        (["render", "--image", "cnn-jobs"], "--image is 'cnn-jobs', which has no tag"),
        (["check", "--image", "cnn-jobs"], "--image is 'cnn-jobs', which has no tag"),
        (["render", "--namespace", "A"], "--namespace is 'A'"),
        (["render", "--no-gpu", "--gpu", "2"], "--no-gpu and --gpu 2 contradict each other"),
        (["render", "--no-data-volume", "--data-claim", "x"], "--no-data-volume and --data-claim x contradict"),
        (["render", "--data-claim", "A"], "--data-claim is 'A'"),
        (["render", "--no-data-volume", "prepare-data"], "'prepare-data' is no Job; the Jobs are doctor"),
        (["render", "task9"], "'task9' is no Job; the Jobs are "),
        (["check", "--out", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_invalid_requests_exit_with_2_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "cnn_jobs", "manifests", *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_check_imports_nothing_heavy() -> None:
    script = (
        "import sys; from cnn_jobs.cli.manifests import manifests\n"
        "manifests(['check'], standalone_mode=False)\n"
        "print(sorted({'torch', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{len(PATHS)} Jobs in k8s are as rendered", "[]"]
