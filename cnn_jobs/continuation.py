"""From what earlier attempts left to the state in which this one goes on."""

from __future__ import annotations

from collections.abc import Callable

from cnn_jobs import run_record
from cnn_jobs.attempt import Attempt
from cnn_jobs.cost_book import CostBook, read_costs
from cnn_jobs.errors import CheckpointMismatchError
from cnn_jobs.files import read_if_whole
from cnn_jobs.run import Run
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.shipper import LEDGER_TAG
from cnn_jobs.training.device import configure_arithmetic
from cnn_jobs.training.state import TrainState, new_state
from cnn_jobs.trunk_features import FeaturePlan


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


def cost_book_of(run: Run, attempt: Attempt) -> CostBook:
    """The costs so far, from the state directory or from MLflow, whichever knows more."""
    path = run.folder / "ledger.json"
    tag = attempt.remote_run.tags.get(LEDGER_TAG, "") if attempt.remote_run else ""
    useful = (attempt.checkpoint or {}).get("useful", {"steps": 0, "device_seconds": 0.0})
    return CostBook(
        attempt.mark.number,
        run.began,
        path,
        run.ledger,
        read_costs(read_if_whole(path), tag, steps_of_last=attempt.left.steps, last=attempt.left.number),
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
    run_record.record_attempt(run, recorder, plan)
    if not attempt.start_is_recorded:
        run_record.record_start(run, recorder, state.frozen)
    saved = attempt.checkpoint
    if not saved:
        return
    known = attempt.entries[-1].seq if attempt.entries else 0
    if attempt.fetched or attempt.journal.damage or saved["journal_seq"] > known:
        run_record.record_history(state, recorder)
    # Of a checkpoint that does not say so, one process.
    before, now = {"processes": 1, **saved["machine"]}, run_record.machine(run, plan)
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        words = f"attempt {attempt.mark.number} went on at step {state.step} with other {', '.join(changed)}"
        warn(f"{words}: the result may differ in its last bits")
        recorder.tags({"cnn_jobs.continued_elsewhere": words})
