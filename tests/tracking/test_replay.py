"""What is left of a run, to MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cnn_jobs.errors import AnotherAttemptError, DamagedJournalError, InterruptedRunError, NotShippedError, UserError
from cnn_jobs.system.lock import RunLock
from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.replay import replay
from tests.helpers.runs import client
from tests.helpers.tracking import finish, recording, rows, unused_address


def unsent(folder: Path, key: str = "key", end: BaseException | None = None, *, ends: bool = True) -> Path:
    """A run that never saw its server."""
    with recording(unused_address(), folder, key) as recorder:
        recorder.params({"lr": 0.1})
        for step in (1, 2, 3):
            recorder.metrics({"train/loss": 1 / step}, step)
        (folder / key / "a.txt").write_text("text")
        recorder.artifact(folder / key / "a.txt", "files/a.txt")
        ending = run_status.status_after(end) if end else run_status.finished()
        assert ending
        if ends:
            assert not recorder.finish(ending, 0.1)
        else:
            recorder.stop()
    return folder / key


EXPECTED = [(step, 1 / step) for step in (1, 2, 3)]


def test_it_sends_everything_and_a_second_time_changes_nothing(mlflow_uri: str, tmp_path: Path) -> None:
    folder = unsent(tmp_path)
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


def test_another_server_gets_it_all_too(mlflow_uri: str, tmp_path: Path, mlflow_template_db: Path) -> None:
    folder = unsent(tmp_path)
    replay(folder, mlflow_uri, 30)
    shutil.copy(mlflow_template_db, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    done = replay(folder, other, 30)
    assert rows(other, done.run_id) == EXPECTED
    assert [each.path for each in client(other).list_artifacts(done.run_id, "files")] == ["files/a.txt"]
    assert client(other).get_run(done.run_id).info.status == "FINISHED"


def test_the_status_is_that_of_the_ending(mlflow_uri: str, tmp_path: Path) -> None:
    killed = replay(unsent(tmp_path, "killed", InterruptedRunError("stopped by SIGTERM")), mlflow_uri, 30)
    failed = replay(unsent(tmp_path, "failed", ZeroDivisionError("a bug")), mlflow_uri, 30)
    silent = replay(unsent(tmp_path, "silent", ends=False), mlflow_uri, 30)
    statuses = [client(mlflow_uri).get_run(each.run_id).info.status for each in (killed, failed, silent)]
    assert statuses == ["KILLED", "FAILED", "RUNNING"]
    assert silent.status == ""
    assert client(mlflow_uri).get_run(failed.run_id).data.tags["cnn_jobs.reason"] == "ZeroDivisionError: a bug"


def test_an_old_journal_does_not_speak_for_a_run_that_went_on(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path / "a") as first:
        first.stop()
    client(mlflow_uri).set_terminated(first.run_id, "FAILED")
    with recording(mlflow_uri, tmp_path / "b") as second:
        assert finish(second)
    with pytest.raises(AnotherAttemptError, match="attempt 2 has taken over"):
        replay(tmp_path / "a" / "key", mlflow_uri, 30)
    assert client(mlflow_uri).get_run(first.run_id).info.status == "FINISHED"


def test_a_last_attempt_that_the_server_never_saw_speaks_for_the_run(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as first:
        first.stop()
    with recording(unused_address(), tmp_path) as second:
        second.metrics({"train/loss": 1.0}, 1)
        assert not finish(second, 0.1)
    done = replay(tmp_path / "key", mlflow_uri, 30)
    run = client(mlflow_uri).get_run(first.run_id)
    assert (done.run_id, done.status, run.info.status) == (first.run_id, "FINISHED", "FINISHED")
    assert run.data.tags["cnn_jobs.attempt"] == "2"
    assert rows(mlflow_uri, first.run_id) == [(1, 1.0)]
    assert replay(tmp_path / "key", mlflow_uri, 30) == done


def test_a_server_that_stays_away_is_exit_75(tmp_path: Path) -> None:
    with pytest.raises(NotShippedError, match="nothing is lost") as caught:
        replay(unsent(tmp_path), unused_address(), 0.1)
    assert caught.value.exit_code == 75


def test_a_folder_without_a_journal_or_a_header_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no journal\.jsonl"):
        replay(tmp_path, mlflow_uri, 1)
    (tmp_path / "journal.jsonl").write_text("nothing of ours\n")
    with pytest.raises(DamagedJournalError, match="no intact record names its run"):
        replay(tmp_path, mlflow_uri, 1)


def test_a_run_under_way_is_left_alone(mlflow_uri: str, tmp_path: Path) -> None:
    folder = unsent(tmp_path)
    lock = RunLock(folder)
    with pytest.raises(AnotherAttemptError, match="is in use by process"):
        replay(folder, mlflow_uri, 1)
    lock.release()


def test_damage_is_told_and_the_rest_is_sent(mlflow_uri: str, tmp_path: Path) -> None:
    folder = unsent(tmp_path)
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (broken,) = [number for number, line in enumerate(lines) if b'"step":2' in line]
    lines[broken] = lines[broken].replace(b"0.5", b"0.6")
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    done = replay(folder, mlflow_uri, 30)
    assert "hold no intact record" in done.damage[0]
    assert rows(mlflow_uri, done.run_id) == [EXPECTED[0], EXPECTED[2]]


@pytest.mark.parametrize("delivered", [True, False])
def test_an_attempt_that_came_after_the_end_and_was_stopped_undoes_nothing(
    mlflow_uri: str, tmp_path: Path, delivered: bool
) -> None:
    """The key was called again while MLflow was away, and stopped at once."""
    with recording(mlflow_uri if delivered else unused_address(), tmp_path) as first:
        first.metrics({"train/loss": 1.0}, 1)
        assert finish(first, 30 if delivered else 0.1) == delivered
    with recording(unused_address(), tmp_path) as second:
        ending = run_status.status_after(InterruptedRunError("stopped by SIGINT"))
        assert ending
        assert not second.finish(ending, 0.1)
    done = replay(tmp_path / "key", mlflow_uri, 30)
    run = client(mlflow_uri).get_run(done.run_id)
    assert (done.status, run.info.status, run.data.tags["cnn_jobs.state"]) == ("FINISHED", "FINISHED", "finished")


def test_a_run_that_is_trained_anew_after_its_end_is_not_finished(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(unused_address(), tmp_path) as first:
        first.metrics({"train/loss": 1.0}, 1)
        assert not finish(first, 0.1)
    with recording(unused_address(), tmp_path) as second:
        second.metrics({"train/loss": 2.0}, 1)
        ending = run_status.status_after(InterruptedRunError("stopped by SIGTERM"))
        assert ending
        assert not second.finish(ending, 0.1)
    assert replay(tmp_path / "key", mlflow_uri, 30).status == "KILLED"


def test_what_was_gone_on_with_in_another_experiment_is_sent_there(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(unused_address(), tmp_path) as first:
        first.stop()
    with recording(unused_address(), tmp_path, experiment="elsewhere") as second:
        assert not finish(second, 0.1)
    done = replay(tmp_path / "key", mlflow_uri, 30)
    experiment = client(mlflow_uri).get_experiment_by_name("elsewhere")
    assert client(mlflow_uri).get_run(done.run_id).info.experiment_id == experiment.experiment_id
    assert client(mlflow_uri).get_experiment_by_name("tests") is None
