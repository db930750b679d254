"""Whether a run continues: which attempt owns it, and from which checkpoint it resumes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnn_jobs.errors import CheckpointMismatchError, DamagedCheckpointError, TrackingError
from cnn_jobs.runs import record
from cnn_jobs.runs.cost import RunCost, read_costs
from cnn_jobs.runs.setup import Run
from cnn_jobs.system.environment import LOOK_UP_S, in_pod, look_up_timeout_s
from cnn_jobs.system.files import make_folder, read_or_empty
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import OutageError, call_within
from cnn_jobs.tracking.ownership import check_cancelled, find_run, may_take_over, wait_for_owner
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import IDENTITY_TAGS, AttemptMark, RunHeader, now_ms
from cnn_jobs.tracking.run_folder import COST_FILE, RunFolder
from cnn_jobs.training.checkpoint import load_checkpoint, newest_checkpoint
from cnn_jobs.training.feature_cache import FeaturePlan
from cnn_jobs.training.state import TrainState

Warn = Callable[[str], object]


@dataclass
class StartingPoint:
    """What an attempt starts from. ``remote_run``: the run as MLflow had it, where it exists and MLflow answered."""

    folder: RunFolder
    client: TrackingClient
    header: RunHeader
    mark: AttemptMark
    remote_run: RemoteRun | None
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_is_local: bool = False

    @property
    def finished(self) -> bool:
        """Whether MLflow has the whole run."""
        return self.remote_run is not None and self.remote_run.status == "FINISHED"

    @property
    def start_is_recorded(self) -> bool:
        """Whether the journal, or MLflow, has everything that is recorded before the first step."""
        return (self.folder.summary.started and not self.folder.journal.damage) or self.fetched

    @property
    def is_trained(self) -> bool:
        """Whether only the rest of the journal is to be uploaded."""
        return self.folder.summary.trained and not self.folder.journal.damage

    @property
    def fetched(self) -> bool:
        """Whether the training resumes from a checkpoint that was downloaded from MLflow."""
        return self.checkpoint is not None and not self.checkpoint_is_local

    @property
    def step(self) -> int:
        """The optimiser step at which the training starts or resumes."""
        return int(self.checkpoint["step"]) if self.checkpoint else 0


def find_start(run: Run, folder: RunFolder, warn: Warn) -> StartingPoint:
    """Looks the run up, waits until no other attempt owns it, and finds its newest checkpoint.

    Raises ``AnotherAttemptError`` (exit 1) where another process owns the run, ``CheckpointMismatchError`` (exit 2)
    where the key is that of something else or ``--resume must`` finds nothing, ``CancelledRunError`` (exit 2) where the
    run was cancelled.
    """
    options, summary = run.options, folder.summary
    for damage in folder.journal.damage:
        warn(f"{folder.journal.path}: {damage}; the rest is kept, and the checkpoint's history is recorded again")
    header = RunHeader(options.experiment, run.key, run.name, now_ms(), record.first_tags(run), options.parent_key)
    header = folder.continued_header(header)
    client = TrackingClient(options.tracking_uri)
    found, answered = None, True
    if options.run_key:
        try:
            # An attempt with local state need not wait long for an answer.
            found = find_run(client, header, LOOK_UP_S if summary.mark else look_up_timeout_s())
        except OutageError as outage:
            answered = False
            warn(f"{outage}; continuing without it")
    mark = folder.next_mark(
        after=found.attempt if found else 0,
        replaces_any=options.key_from_job,
        revives=options.resume == "must",
    )
    start = StartingPoint(folder, client, header, mark, found)
    if found:
        header.check_same(found.tags, f"run {found.run_id} in MLflow")
        if start.finished:
            return start
        check_cancelled(run.key, found, mark)
        if not may_take_over(found, mark):
            warn(f"attempt {found.attempt} of run {run.key} may be alive: watching its heartbeat for up to a minute")
            wait_for_owner(client, header, found)
        start.mark = replace(mark, replaces=mark.replaces | {found.attempt_id})
    answered = _find_checkpoint(run, start, warn) and answered
    if options.resume == "must" and start.checkpoint is None:
        if not answered:
            raise TrackingError("--resume must: no checkpoint here, and MLflow does not answer whether it has one")
        raise CheckpointMismatchError(
            f"--resume must: run {run.key} has no checkpoint, neither in {folder.path} nor in MLflow; "
            "check --run-key and --experiment, or use --resume auto"
        )
    folder.begin_attempt(header, start.mark, start.step)
    return start


# -- checkpoints -----------------------------------------------------------------------------------------------------


def _find_checkpoint(run: Run, start: StartingPoint, warn: Warn) -> bool:
    """Sets ``start.checkpoint``; returns whether all places where there may be one answered."""
    if run.options.resume == "never":
        return True
    content, notes = newest_checkpoint(make_folder(run.folder / names.CHECKPOINTS))
    start.checkpoint_is_local = content is not None
    for note in notes:
        warn(note)
    found, answered = start.remote_run, True
    # Where the run's last attempt in MLflow was one of this folder's, MLflow has nothing newer.
    current = content is not None and not notes
    if found and not (current and found.attempt_id in start.folder.summary.attempt_ids):
        downloaded, answered = _download_checkpoints(start.client, found, run.folder, warn)
        for each in downloaded:
            if content is None or each["step"] > content["step"]:
                content, start.checkpoint_is_local = each, False
    if content is not None:
        identity = {tag: content[tag.removeprefix(names.PREFIX)] for tag in IDENTITY_TAGS}
        start.header.check_same(identity, "its checkpoint")
    start.checkpoint = content
    return answered


def _download_checkpoints(
    client: TrackingClient, found: RemoteRun, folder: Path, warn: Warn
) -> tuple[list[dict[str, Any]], bool]:
    """The undamaged checkpoints among the run's artifacts, and whether MLflow answered in time."""
    target = Path(tempfile.mkdtemp(prefix="fetched-", dir=folder))

    def download() -> list[Path]:
        there = set(client.artifacts(found.run_id, names.CHECKPOINTS))
        return [client.download(found.run_id, slot, target) for slot in names.CHECKPOINT_SLOTS if slot in there]

    contents = []
    try:
        for path in call_within(300.0 if in_pod() else 60.0, download):
            try:
                contents.append(load_checkpoint(path))
            except DamagedCheckpointError as damage:
                warn(f"from MLflow: {damage}")
    except TrackingError as error:
        warn(f"{error}; the checkpoint in MLflow could not be downloaded")
        return contents, False
    finally:
        for leftover in folder.glob("fetched-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return contents, True


# -- from there to the first step ------------------------------------------------------------------------------------


def state_of(run: Run, start: StartingPoint) -> TrainState:
    """A new state, or the checkpoint's, on the threads with which it was trained (``run.threads`` is set to them).

    Raises ``CheckpointMismatchError`` for a checkpoint of another version of the task.
    """
    saved = start.checkpoint
    if saved and not run.options.threads:
        run.threads = saved["machine"]["threads"]
    state = run.new_state()
    if saved:
        try:
            state.load_state_dict(dict(saved))
        except (ValueError, RuntimeError) as error:
            raise CheckpointMismatchError(
                f"run {run.key}: its checkpoint does not fit this version of {run.task.name}: {error}; "
                "use another --run-key, or the version with which it was started"
            ) from error
    return state


def cost_of(run: Run, start: StartingPoint) -> RunCost:
    """The costs so far, from the state directory or from MLflow, whichever has more."""
    path, summary = run.folder / COST_FILE, start.folder.summary
    tag = start.remote_run.tags.get(names.COST, "") if start.remote_run else ""
    useful = (start.checkpoint or {}).get("useful", {"steps": 0, "device_seconds": 0.0})
    before = read_costs(read_or_empty(path), tag, steps_of_last=summary.steps, last=summary.number)
    return RunCost(
        start.mark.number, run.began, path, run.spent, before, int(useful["steps"]), useful["device_seconds"]
    )


def record_beginning(
    run: Run,
    start: StartingPoint,
    state: TrainState,
    recorder: JournalRecorder,
    warn: Warn,
    plan: FeaturePlan | None,
) -> None:
    """Records what precedes an attempt's first step: all of it for a new run, what is missing for a resumed one."""
    record.record_attempt(run, recorder, plan)
    if not start.start_is_recorded:
        record.record_start(run, recorder, state.backbone)
    saved, folder = start.checkpoint, start.folder
    if not saved:
        return
    known = folder.entries[-1].seq if folder.entries else 0
    if start.fetched or folder.journal.damage or saved["journal_seq"] > known:
        record.record_history(state, recorder)
    before, now = record.with_defaults(saved["machine"]), record.machine(run, plan)
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        text = f"attempt {start.mark.number} continued at step {state.step} with other {', '.join(changed)}"
        warn(f"{text}: the result may differ")
        recorder.tags({names.CONTINUED_ELSEWHERE: text})
