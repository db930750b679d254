"""A pod's arguments are valid for its command, and each of its environment variables is read by some program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import matplotlib
import pytest
from click.core import ParameterSource

from cnn_jobs.cluster.plans import PROCESSES
from cnn_jobs.data.sources import default_cache_dir
from cnn_jobs.tasks import INTERPRETATIONS, TASKS
from tests.helpers.job_files import (
    DDP,
    DOCUMENTS,
    ROOT,
    TRAINING,
    UID,
    container_of,
    context_of,
    env_of,
    in_the_pod,
    pod_of,
)

VARIABLES = sorted({(name, variable) for name, job in DOCUMENTS.items() for variable in env_of(job)})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_arguments_are_valid_for_the_command(name: str) -> None:
    context = context_of(DOCUMENTS[name])
    task = name.removesuffix("-job.yaml").removesuffix("-seeds").removesuffix("-ddp")
    if task in TASKS | INTERPRETATIONS:
        assert (context.command.name, context.params["task"]) == ("train" if task in TASKS else "interpret", task)
    for parameter in context.command.params:
        if isinstance(parameter.type, click.Path) and context.get_parameter_source(parameter.name) == (
            ParameterSource.COMMANDLINE
        ):
            assert context.params[parameter.name].is_relative_to("/tmp")


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_pod_trains_the_task_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_pod(DOCUMENTS[name], monkeypatch)
    given = context_of(DOCUMENTS[name]).params
    seeds = name.endswith("-seeds-job.yaml")
    assert given["seed"] == (3 if seeds else None)
    assert given["run_key"] == (f"{UID}-3" if seeds else UID)
    assert (given["seeds"], given["sweep"]) == ("", ())
    assert given["device"] == "cuda"
    assert given["state_dir"] == Path("/state")
    assert given["durable_state"] is False
    assert given["resume"] == "auto"
    assert given["ship_deadline"] == 3600
    assert given["world_size"] == (PROCESSES if name in DDP else 1)
    assert given["group"] == (UID if seeds else "")
    (port,) = [each for each in container_of(DOCUMENTS[name])["ports"] if each["name"] == "metrics"]
    assert (given["metrics_host"], given["metrics_port"]) == ("0.0.0.0", port["containerPort"])


def test_a_claim_for_the_state_makes_it_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_DURABLE_STATE", "true")
    in_the_pod(DOCUMENTS["task2-job.yaml"], monkeypatch)
    assert context_of(DOCUMENTS["task2-job.yaml"]).params["durable_state"] is True


def test_the_config_map_sets_options_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_EXPERIMENT", "autumn")
    monkeypatch.setenv("CNN_JOBS_DATA", "shapes")
    for name, job in DOCUMENTS.items():
        params = context_of(job).params
        if name != "prepare-data-job.yaml":
            assert params["experiment"] == "autumn"
        if name in TRAINING or name == "doctor-job.yaml":
            assert params["data"] == "shapes"


def test_the_doctor_has_the_environment_of_a_training_pod() -> None:
    doctor, training = DOCUMENTS["doctor-job.yaml"], DOCUMENTS["task2-job.yaml"]
    ours, theirs = container_of(doctor), container_of(training)
    assert pod_of(doctor)["volumes"] == pod_of(training)["volumes"]
    for each in ("volumeMounts", "resources", "securityContext", "envFrom", "image"):
        assert ours[each] == theirs[each]
    assert env_of(doctor) == {**env_of(training), "CNN_JOBS_LOG_FORMAT": "text"}
    assert {k: v for k, v in pod_of(doctor).items() if k != "containers"} == {
        k: v for k, v in pod_of(training).items() if k != "containers"
    }


def test_the_report_is_kept_in_mlflow() -> None:
    assert context_of(DOCUMENTS["report-job.yaml"]).params["log"] is True


def test_data_and_weights_are_read_from_where_they_are_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cnn_jobs.models.weights import IMAGENET_FILE

    staged = env_of(DOCUMENTS["prepare-data-job.yaml"])
    for name, job in DOCUMENTS.items():
        if name == "report-job.yaml":
            continue
        in_the_pod(job, monkeypatch)
        assert default_cache_dir() == Path("/data")
        weights = Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE
        assert weights == Path("/data/torch/hub/checkpoints/resnet18-f37072fd.pth")
        assert {k: env_of(job)[k] for k in ("CNN_JOBS_CACHE_DIR", "TORCH_HOME")} == {
            k: staged[k] for k in ("CNN_JOBS_CACHE_DIR", "TORCH_HOME")
        }
        monkeypatch.undo()
        monkeypatch.setenv("CNN_JOBS_STATE_DIR", "x")
        monkeypatch.setenv("CNN_JOBS_CACHE_DIR", "x")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_in_the_environment_are_in_volumes_and_written_ones_in_writable_volumes(name: str) -> None:
    mounts = {each["mountPath"]: each for each in container_of(DOCUMENTS[name])["volumeMounts"]}
    for variable, value in env_of(DOCUMENTS[name]).items():
        if value.startswith("/"):
            (mount,) = [each for path, each in mounts.items() if Path(value).is_relative_to(path)]
            if variable in ("CNN_JOBS_STATE_DIR", "HOME", "MPLCONFIGDIR") or name == "prepare-data-job.yaml":
                assert "readOnly" not in mount
    assert "/tmp" in mounts


def read_by_the_program() -> set[str]:
    """Upper-case strings in the code, except in the code that renders the manifests."""
    found: set[str] = set()
    for path in (ROOT / "cnn_jobs").rglob("*.py"):
        if "cluster" not in path.relative_to(ROOT).parts:
            strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
            found |= {each for each in strings if isinstance(each, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", each)}
    return found


READ = read_by_the_program()


def is_known(variable: str, command: click.Command) -> bool:
    """Whether the command, cnn-jobs, MLflow, torch, matplotlib or the system reads the variable."""
    if variable.startswith("CNN_JOBS_"):
        return variable in READ or variable in [parameter.envvar for parameter in command.params]
    if variable.startswith("MLFLOW_"):
        from mlflow import environment_variables

        return str(getattr(getattr(environment_variables, variable, None), "name", "")) == variable
    if variable.startswith("MASTER_"):
        return variable in READ
    if variable.startswith("TORCH_"):
        import torch.hub

        return variable in (torch.hub.ENV_TORCH_HOME,)
    return variable == "HOME" or f'"{variable}"' in Path(matplotlib.__file__).read_text().replace("'", '"')


@pytest.mark.parametrize(("name", "variable"), VARIABLES)
def test_each_variable_is_read(name: str, variable: str) -> None:
    command = context_of(DOCUMENTS[name]).command
    assert is_known(variable, command)


def test_an_unread_variable_is_detected() -> None:
    train = context_of(DOCUMENTS["task2-job.yaml"]).command
    for variable in ("CNN_JOBS_SEED", "CNN_JOBS_JOB_UID", "MLFLOW_TRACKING_URI", "TORCH_HOME", "MPLCONFIGDIR", "HOME"):
        assert is_known(variable, train)
    for variable in (
        "CNN_JOBS_SEEDS_",
        "CNN_JOBS_UID",
        "MASTER_HOST",
        "MLFLOW_TRACKING_URL",
        "TORCH_HOMES",
        "MPLCONFIG",
        "HOMES",
    ):
        assert not is_known(variable, train)
    assert not is_known("CNN_JOBS_LAYER", train)  # of another command
