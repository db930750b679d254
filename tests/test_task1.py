"""Task 1: the right answers, as the course's own text has them, and what is made of the report's."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cnn_jobs.cli import cli
from cnn_jobs.course import task1
from cnn_jobs.errors import NotShippedError
from cnn_jobs.tracking import document_run
from cnn_jobs.tracking.document_run import log_documents
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.run_reader import runs_of
from tests.helpers.tracking import client, unused_address

ANSWERS = {
    "1a": "2 -1 11 -2 -13 / 10 -4 8 2 -18 / 14 -1 -5 6 -9",
    "1b": "pooling layers",
    "1c": "2",
    "1d": "9x9",
    "1e": "252x252",
    "1f": "250x250",
    "1g": "390,410",
}


def test_the_answers_are_right_and_so_is_the_judgement_of_the_report() -> None:
    parts = task1.answers()
    assert {each.part: each.short for each in parts} == ANSWERS
    assert [each.part for each in parts if each.mistake] == ["1b", "1g"]
    (parameters,) = [each for each in parts if each.part == "1g"]
    assert "224" in parameters.verdict  # 390,410 - 390,186: the biases of the convolutions
    assert all("report" not in each.report for each in parts)


def test_the_working_shows_the_padded_image_and_every_layer() -> None:
    working = {each.part: "\n".join(each.working) for each in task1.answers()}
    assert "0  1  0  2  3  1  0" in working["1a"]
    assert working["1a"].count("0  0  0  0  0  0  0") == 2
    for parameters in ("2,432", "51,264", "204,928", "131,136", "650"):
        assert f"= {parameters}" in working["1g"]


def test_a_wrong_report_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task1, "REPORTED_COLUMN", [2, 10, 13])
    (convolution,) = [each for each in task1.answers() if each.part == "1a"]
    assert convolution.verdict == "wrong: the first column is 2, 10, 14"


def test_the_command_prints_every_answer_with_its_working() -> None:
    result = CliRunner().invoke(cli, ["arithmetic"], catch_exceptions=False)
    assert result.exit_code == 0
    for each in task1.answers():
        assert each.question in result.output
        assert all(line in result.output for line in each.working)
    assert result.output.count(" wrong ") == 2


def test_the_answers_can_be_kept_in_mlflow(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    result = CliRunner().invoke(cli, ["arithmetic", "--log", "--experiment", "course"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    mlflow = client(mlflow_uri)
    experiment = mlflow.get_experiment_by_name("course")
    (run,) = mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_id in result.output
    page = Path(mlflow.download_artifacts(run.info.run_id, "arithmetic.md")).read_text(encoding="utf-8")
    assert all(each.question in page for each in task1.answers())
    assert runs_of(mlflow_uri, "course") == []  # no training: no comparison counts it


@pytest.mark.parametrize(("pod", "code", "says"), [(False, 75, "the rest is in "), (True, 1, "the rest is lost with")])
def test_where_mlflow_is_away_the_exit_code_says_whether_the_page_is_kept(
    pod: bool, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JournalRecorder.start, "__defaults__", (lambda: False, 0.1))
    monkeypatch.setattr(document_run, "DEADLINE_S", 0.2)
    if pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with pytest.raises(NotShippedError, match=says) as caught:
        log_documents(
            "task1",
            "page",
            lambda folder: None,
            tracking_uri=unused_address(),
            experiment="course",
            state_dir=tmp_path / "state",
        )
    assert caught.value.exit_code == code
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_a_page_that_cannot_be_written_leaves_no_run_running(mlflow_uri: str, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise ValueError("made by the test")

    with pytest.raises(ValueError, match="made by the test"):
        log_documents(
            "task1", "page", write, tracking_uri=mlflow_uri, experiment="course", state_dir=tmp_path / "state"
        )
    mlflow = client(mlflow_uri)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("course").experiment_id])
    assert (run.info.status, run.data.tags["cnn_jobs.reason"]) == ("FAILED", "ValueError: made by the test")
