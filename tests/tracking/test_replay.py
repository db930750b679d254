"""The upload of what is left of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cnn_jobs.errors import AnotherAttemptError, DamagedJournalError, InterruptedRunError, NotShippedError, UserError
from cnn_jobs.system.lock import RunLock
from cnn_jobs.tracking.replay import replay
from tests.helpers.servers import unused_url
from tests.helpers.tracking import client, finish, finish_after, recording, rows, runs_in, status_of

EXPECTED = [(step, 1 / step) for step in (1, 2, 3)]


def unsent_run(folder: Path, key: str = "key", error: BaseException | None = None, *, ends: bool = True) -> Path:
    """The folder of a run that never reached its server."""
    with recording(unused_url(), folder, key) as recorder:
        recorder.params({"lr": 0.1})
        for step, loss in EXPECTED:
            recorder.metrics({"train/loss": loss}, step)
        (folder / key / "a.txt").write_text("text")
        recorder.artifact(folder / key / "a.txt", "files/a.txt")
        if not ends:
            recorder.stop()
        else:
            assert not (finish_after(recorder, error, 0.1) if error else finish(recorder, 0.1))
    return folder / key


def test_replay_sends_everything_and_a_second_one_changes_nothing(mlflow_uri: str, tmp_path: Path) -> None:
    folder = unsent_run(tmp_path)
    first = replay(folder, mlflow_uri, 30)
    before = client(mlflow_uri).get_run(first.run_id)
    assert (first.status, before.info.status, before.data.params) == ("FINISHED", "FINISHED", {"lr": "0.1"})
    second = replay(folder, mlflow_uri, 30)
    after = client(mlflow_uri).get_run(second.run_id)
    assert second == first
    assert after.info.end_time == before.info.end_time
    assert after.data.tags == before.data.tags
    assert rows(mlflow_uri, first.run_id) == EXPECTED
    fetched = client(mlflow_uri).download_artifacts(first.run_id, "files/a.txt", str(tmp_path))
    assert Path(fetched).read_text() == "text"


def test_another_server_gets_everything_too(mlflow_uri: str, tmp_path: Path, mlflow_template_db: Path) -> None:
    folder = unsent_run(tmp_path)
    replay(folder, mlflow_uri, 30)
    shutil.copy(mlflow_template_db, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    replayed = replay(folder, other, 30)
    assert rows(other, replayed.run_id) == EXPECTED
    assert [each.path for each in client(other).list_artifacts(replayed.run_id, "files")] == ["files/a.txt"]
    assert status_of(other, replayed.run_id)[0] == "FINISHED"


def test_replay_sets_the_recorded_status(mlflow_uri: str, tmp_path: Path) -> None:
    killed = replay(unsent_run(tmp_path, "killed", InterruptedRunError("stopped by SIGTERM")), mlflow_uri, 30)
    failed = replay(unsent_run(tmp_path, "failed", ZeroDivisionError("a bug")), mlflow_uri, 30)
    open_end = replay(unsent_run(tmp_path, "open", ends=False), mlflow_uri, 30)
    assert [status_of(mlflow_uri, each.run_id) for each in (killed, failed, open_end)] == [
        ("KILLED", "interrupted", "stopped by SIGTERM"),
        ("FAILED", "failed", "ZeroDivisionError: a bug"),
        ("RUNNING", "running", ""),
    ]
    assert open_end.status == ""


def test_replay_of_a_superseded_attempt_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path / "a") as first:
        first.stop()
    client(mlflow_uri).set_terminated(first.run_id, "FAILED")
    with recording(mlflow_uri, tmp_path / "b") as second:
        assert finish(second)
    with pytest.raises(AnotherAttemptError, match="attempt 2 has taken over"):
        replay(tmp_path / "a" / "key", mlflow_uri, 30)
    assert status_of(mlflow_uri, first.run_id)[0] == "FINISHED"


def test_replay_delivers_an_attempt_that_never_reached_the_server(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as first:
        first.stop()
    with recording(unused_url(), tmp_path) as second:
        second.metrics({"train/loss": 1.0}, 1)
        assert not finish(second, 0.1)
    replayed = replay(tmp_path / "key", mlflow_uri, 30)
    run = client(mlflow_uri).get_run(first.run_id)
    assert (replayed.run_id, replayed.status, run.info.status) == (first.run_id, "FINISHED", "FINISHED")
    assert run.data.tags["cnn_jobs.attempt"] == "2"
    assert rows(mlflow_uri, first.run_id) == [(1, 1.0)]
    assert replay(tmp_path / "key", mlflow_uri, 30) == replayed


def test_server_that_stays_away_is_exit_75(tmp_path: Path) -> None:
    with pytest.raises(NotShippedError, match="nothing is lost") as caught:
        replay(unsent_run(tmp_path), unused_url(), 0.1)
    assert caught.value.exit_code == 75


def test_folder_without_a_journal_or_a_header_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no journal\.jsonl"):
        replay(tmp_path, mlflow_uri, 1)
    (tmp_path / "journal.jsonl").write_text("nothing of ours\n")
    with pytest.raises(DamagedJournalError, match="no intact record names its run"):
        replay(tmp_path, mlflow_uri, 1)


def test_run_in_use_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    folder = unsent_run(tmp_path)
    lock = RunLock(folder)
    with pytest.raises(AnotherAttemptError, match="is in use by process"):
        replay(folder, mlflow_uri, 1)
    lock.release()


def test_damage_is_reported_and_the_rest_is_sent(mlflow_uri: str, tmp_path: Path) -> None:
    folder = unsent_run(tmp_path)
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (broken,) = [number for number, line in enumerate(lines) if b'"step":2' in line]
    lines[broken] = lines[broken].replace(b"0.5", b"0.6")
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    replayed = replay(folder, mlflow_uri, 30)
    assert "hold no intact record" in replayed.damage[0]
    assert rows(mlflow_uri, replayed.run_id) == [EXPECTED[0], EXPECTED[2]]


@pytest.mark.parametrize("delivered", [True, False])
def test_finished_run_stays_finished_after_an_interrupted_attempt(
    mlflow_uri: str, tmp_path: Path, delivered: bool
) -> None:
    """The same command was called again while MLflow was away, and stopped at once."""
    with recording(mlflow_uri if delivered else unused_url(), tmp_path) as first:
        first.metrics({"train/loss": 1.0}, 1)
        assert finish(first, 30 if delivered else 0.1) == delivered
    with recording(unused_url(), tmp_path) as second:
        assert not finish_after(second, InterruptedRunError("stopped by SIGINT"), 0.1)
    replayed = replay(tmp_path / "key", mlflow_uri, 30)
    assert replayed.status == "FINISHED"
    assert status_of(mlflow_uri, replayed.run_id)[:2] == ("FINISHED", "finished")


def test_run_that_is_trained_again_after_its_end_is_not_finished(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(unused_url(), tmp_path) as first:
        first.metrics({"train/loss": 1.0}, 1)
        assert not finish(first, 0.1)
    with recording(unused_url(), tmp_path) as second:
        second.metrics({"train/loss": 2.0}, 1)
        assert not finish_after(second, deadline_s=0.1)
    assert replay(tmp_path / "key", mlflow_uri, 30).status == "KILLED"


def test_run_continued_in_another_experiment_is_sent_there(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(unused_url(), tmp_path) as first:
        first.stop()
    with recording(unused_url(), tmp_path, experiment="elsewhere") as second:
        assert not finish(second, 0.1)
    replayed = replay(tmp_path / "key", mlflow_uri, 30)
    assert [run.info.run_id for run in runs_in(mlflow_uri, "elsewhere")] == [replayed.run_id]
    assert client(mlflow_uri).get_experiment_by_name("tests") is None
