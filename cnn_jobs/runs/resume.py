"""From what earlier attempts left to the state in which this one goes on."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnn_jobs.errors import CheckpointMismatchError, DamagedCheckpointError, TrackingError
from cnn_jobs.runs import record
from cnn_jobs.runs.cost import RunCost, read_costs
from cnn_jobs.runs.setup import Run
from cnn_jobs.system.environment import LOOK_UP_S, in_pod, look_up_budget_s
from cnn_jobs.system.files import make_folder, read_or_empty
from cnn_jobs.system.lock import RunLock
from cnn_jobs.tracking import look_up
from cnn_jobs.tracking.client import OutageError, RemoteRun, TrackingClient
from cnn_jobs.tracking.delivery import CursorFile
from cnn_jobs.tracking.journal import Entry, Journal
from cnn_jobs.tracking.journal_summary import JournalSummary, attempt_record, summarize
from cnn_jobs.tracking.outbox import Outbox
from cnn_jobs.tracking.ownership import check_cancelled, check_role, may_take_over, runs_of_key, wait_until_still
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import AttemptMark, RunHeader
from cnn_jobs.tracking.uploader import JOURNAL, LEDGER_TAG
from cnn_jobs.training.checkpoint import load_checkpoint, newest_checkpoint
from cnn_jobs.training.device import configure_arithmetic
from cnn_jobs.training.feature_cache import FeaturePlan
from cnn_jobs.training.state import TrainState, new_state

Say = Callable[[str], object]


@dataclass
class Attempt:
    """What an attempt starts from. ``remote_run``: the run as MLflow had it, where it was there and answered."""

    remote: TrackingClient
    journal: Journal
    header: RunHeader
    mark: AttemptMark
    left: JournalSummary
    entries: list[Entry]
    remote_run: RemoteRun | None
    lock: RunLock
    checkpoint: dict[str, Any] | None = None
    checkpoint_is_local: bool = False

    @property
    def finished(self) -> bool:
        """Whether MLflow has the whole run."""
        return self.remote_run is not None and self.remote_run.status == "FINISHED"

    @property
    def start_is_recorded(self) -> bool:
        """Whether the journal, or MLflow, has all that is recorded before the first step."""
        return (self.left.started and not self.journal.damage) or self.fetched

    @property
    def is_trained(self) -> bool:
        """Whether all that is left to do is to send the rest of the journal."""
        return self.left.trained and not self.journal.damage

    @property
    def fetched(self) -> bool:
        """Whether the training goes on from a checkpoint that came back from MLflow."""
        return self.checkpoint is not None and not self.checkpoint_is_local

    def close(self) -> None:
        """Lets go of the journal and the run's folder."""
        self.journal.close()
        self.lock.release()


def open_attempt(run: Run, header: RunHeader, say: Say) -> Attempt:
    """Takes the run's folder, looks the run up, and finds the newest checkpoint of it.

    Raises ``AnotherAttemptError`` (exit 1) where another process has the run, ``CheckpointMismatchError`` (exit 2)
    where the key stands for something else or ``--resume must`` finds nothing, ``CancelledRunError`` (exit 2) where the
    run was cancelled.
    """
    lock = RunLock(run.folder)
    for leftover in run.folder.rglob("*.partial"):  # of a write that a kill cut short
        leftover.unlink(missing_ok=True)
    journal = None
    try:
        journal = Journal(run.folder / JOURNAL, after=CursorFile(run.folder).highest())
        return _open(run, header, lock, journal, say)
    except BaseException:
        if journal:
            journal.close()
        lock.release()
        raise


def _open(run: Run, header: RunHeader, lock: RunLock, journal: Journal, say: Say) -> Attempt:
    for damage in journal.damage:
        say(f"{run.folder / JOURNAL}: {damage}; what is whole is kept, the checkpoint's history is recorded again")
    entries = journal.entries
    left = summarize(entries)
    if left.header:
        check_role(run.key, left.header.tags, "", str(run.folder))
        _check_header(run, left.header.tags, str(run.folder))
        header = replace(left.header, experiment=header.experiment)
    Outbox(run.folder).sweep([entry.content for entry in entries if entry.kind == "artifact"])
    remote = TrackingClient(run.options.tracking_uri)
    # Who has something to go on from need not wait long for a word of it.
    budget_s = LOOK_UP_S if left.mark else look_up_budget_s()
    found, known = _look_up(remote, header, say, budget_s) if run.options.run_key else (None, True)
    number = max(left.mark.number if left.mark else 0, found.attempt if found else 0) + 1
    mark = AttemptMark(
        uuid.uuid4().hex[:12],
        number,
        left.attempt_ids,
        replaces_any=run.options.key_from_job,
        revives=run.options.resume == "must",
    )
    attempt = Attempt(remote, journal, header, mark, left, entries, found, lock)
    if found:
        check_role(run.key, found.tags, "", f"run {found.run_id} in MLflow")
        _check_header(run, found.tags, f"run {found.run_id} in MLflow")
        if attempt.finished:
            return attempt
        check_cancelled(run.key, found, mark)
        attempt.mark = _wait_for_turn(remote, header, found, mark, say)
    known = _find_checkpoint(run, attempt, say) and known
    if run.options.resume == "must" and attempt.checkpoint is None:
        if not known:
            raise TrackingError("--resume must: no checkpoint here, and MLflow does not say whether it has one")
        raise CheckpointMismatchError(
            f"--resume must: run {run.key} has no checkpoint, neither in {run.folder} nor in MLflow; "
            "check --run-key and --experiment, or use --resume auto"
        )
    journal.append(
        "attempt", attempt_record(header, attempt.mark, attempt.checkpoint["step"] if attempt.checkpoint else 0)
    )
    return attempt


def _look_up(remote: TrackingClient, header: RunHeader, say: Say, budget_s: float) -> tuple[RemoteRun | None, bool]:
    """The run as MLflow has it, and whether MLflow could be asked."""
    try:
        return look_up.find_run(remote, header, budget_s), True
    except OutageError as outage:
        say(f"{outage}; going on without it")
        return None, False


def _check_header(run: Run, tags: Any, where: str) -> None:
    """Raises ``CheckpointMismatchError`` where the key was used for another recipe or data set."""
    for name, ours in run.identity().items():
        theirs = tags.get(f"cnn_jobs.{name}", "")
        if name in ("task", "recipe_hash", "data_digest") and theirs and theirs != ours:
            raise CheckpointMismatchError(
                f"run {run.key}: {where} is of {name} {theirs[:12]}, this command of {ours[:12]}; "
                "use another --run-key, or the options and data that it was started with"
            )


def _wait_for_turn(
    remote: TrackingClient, header: RunHeader, found: RemoteRun, mark: AttemptMark, say: Say
) -> AttemptMark:
    if may_take_over(found, mark):
        return replace(mark, replaces=mark.replaces | {found.attempt_id})
    say(f"attempt {found.attempt} of run {header.run_key} may be alive: watching its heartbeat for up to a minute")

    def read() -> RemoteRun:
        return next((each for each in runs_of_key(remote, header) if each.run_id == found.run_id), found)

    wait_until_still(found, read, time.sleep)
    return replace(mark, replaces=mark.replaces | {found.attempt_id})


def _find_checkpoint(run: Run, attempt: Attempt, say: Say) -> bool:
    """Fills ``attempt.checkpoint``; whether all places where there may be one could be asked."""
    if run.options.resume == "never":
        return True
    folder = make_folder(run.folder / "checkpoints")
    content, notes = newest_checkpoint(folder)
    attempt.checkpoint_is_local = content is not None
    for note in notes:
        say(note)
    found = attempt.remote_run
    # The run's last attempt, as MLflow has it, was one of this folder's own: there is nothing newer there.
    current, asked = content is not None and not notes, True
    if found and not (current and found.attempt_id in attempt.left.attempt_ids):
        there, asked = _fetch(attempt.remote, found, run.folder, say)
        for fetched in there:
            if content is None or fetched["step"] > content["step"]:
                content, attempt.checkpoint_is_local = fetched, False
    if content is not None:
        _check_header(run, {f"cnn_jobs.{name}": content[name] for name in run.identity()}, "its checkpoint")
    attempt.checkpoint = content
    return asked


def _fetch(remote: TrackingClient, found: RemoteRun, folder: Path, say: Say) -> tuple[list[dict[str, Any]], bool]:
    contents, came = [], True
    try:
        budget = 300.0 if in_pod() else 60.0
        for path in look_up.fetch_checkpoints(remote, found, folder, budget):
            try:
                contents.append(load_checkpoint(path))
            except DamagedCheckpointError as damage:
                say(f"from MLflow: {damage}")
    except TrackingError as error:
        came = False
        say(f"{error}; the checkpoint in MLflow could not be had")
    finally:
        for leftover in folder.glob("fetched-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return contents, came


def state_of(run: Run, attempt: Attempt) -> TrainState:
    """A new state, or the checkpoint's, on the threads that it was trained with (the run's are set to these).

    Raises ``CheckpointMismatchError`` for a checkpoint that another version of the task wrote.
    """
    saved = attempt.checkpoint
    if saved and not run.options.threads:
        run.threads = saved["machine"]["threads"]
    state = fresh_state(run)
    if saved:
        try:
            state.load_state_dict(saved)
        except (ValueError, RuntimeError) as error:
            raise CheckpointMismatchError(
                f"run {run.key}: its checkpoint does not fit this version of {run.task.name}: {error}; "
                "use another --run-key, or the version that it was started with"
            ) from error
    return state


def fresh_state(run: Run) -> TrainState:
    """The state before the first step, on the run's threads."""
    configure_arithmetic(run.threads, fast=run.options.fast)
    weights = run.weights.tensors if run.weights else None
    return new_state(run.task.network, run.recipe, run.image, len(run.dataset.classes), run.placement, weights)


def cost_book_of(run: Run, attempt: Attempt) -> RunCost:
    """The costs so far, from the state directory or from MLflow, whichever knows more."""
    path = run.folder / "ledger.json"
    tag = attempt.remote_run.tags.get(LEDGER_TAG, "") if attempt.remote_run else ""
    useful = (attempt.checkpoint or {}).get("useful", {"steps": 0, "device_seconds": 0.0})
    return RunCost(
        attempt.mark.number,
        run.began,
        path,
        run.ledger,
        read_costs(read_or_empty(path), tag, steps_of_last=attempt.left.steps, last=attempt.left.number),
        int(useful["steps"]),
        useful["device_seconds"],
    )


def record_beginning(
    run: Run,
    attempt: Attempt,
    state: TrainState,
    recorder: JournalRecorder,
    warn: Callable[[str], object],
    plan: FeaturePlan | None,
) -> None:
    """What is recorded before an attempt's first step: all of it for a new run, what is missing for an old one."""
    record.record_attempt(run, recorder, plan)
    if not attempt.start_is_recorded:
        record.record_start(run, recorder, state.frozen)
    saved = attempt.checkpoint
    if not saved:
        return
    known = attempt.entries[-1].seq if attempt.entries else 0
    if attempt.fetched or attempt.journal.damage or saved["journal_seq"] > known:
        record.record_history(state, recorder)
    # Of a checkpoint that does not say so, one process.
    before, now = {"processes": 1, **saved["machine"]}, record.machine(run, plan)
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        words = f"attempt {attempt.mark.number} went on at step {state.step} with other {', '.join(changed)}"
        warn(f"{words}: the result may differ in its last bits")
        recorder.tags({"cnn_jobs.continued_elsewhere": words})
