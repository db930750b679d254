"""The result of a run that was finished before."""

from __future__ import annotations

import time

from cnn_jobs.data.batches import ImageSet, Parts, TrainingData
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.distributed.rendezvous import Alone, Peers
from cnn_jobs.errors import CONTINUE, CnnJobsError, InterruptedRunError, NotShippedError, PeerLostError
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs import artifacts, record, resume
from cnn_jobs.runs.checkpointing import CheckpointSaver
from cnn_jobs.runs.resume import Attempt, open_attempt
from cnn_jobs.runs.setup import Run, RunOptions, RunResult, device_of, facts_of, prepare
from cnn_jobs.system.files import make_folder
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.connection import run_url
from cnn_jobs.tracking.journal_summary import last_metrics
from cnn_jobs.tracking.recorder import FLUSH_TIMEOUT_S, JournalRecorder
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.training.feature_cache import FeaturePlan, features_of_run, plan_features
from cnn_jobs.training.loop import Ending, train
from cnn_jobs.training.observer import LiveAttempt, Phase, Recorders, Watcher
from cnn_jobs.training.state import TrainState

# How long a start waits for a word from MLflow; without one the training begins all the same.
CONTACT_S = 5.0
# For the reason of a failure, which is also in the journal.
FAILURE_DEADLINE_S = 60.0


def train_run(
    task: Task,
    recipe: Recipe,
    options: RunOptions,
    dataset: Dataset,
    watcher: Watcher,
    stop: StopRequest,
    peers: Peers | None = None,
) -> RunResult:
    """Trains one run, or goes on with it, and leaves it in MLflow, FINISHED with everything in it.

    ``peers``: the other processes of a distributed training, of which this one is rank 0. A run that is FINISHED
    already is only read back. Any other end raises: the run is then FAILED or, after a signal or the loss of a process,
    KILLED, with the reason in a tag.
    """
    # All that can be refused is looked at before MLflow hears of the run: a mistake leaves no run behind.
    stop.release()
    peers = peers or Alone()
    run, data, steps = prepare(task, recipe, options, dataset, peers.world)
    peers.join(facts_of(run), device_of(run))
    header = RunHeader(options.experiment, run.key, run.name, now_ms(), record.first_tags(run), options.parent_key)
    state = run_status.FINISHED
    try:
        stop.check()
        attempt = open_attempt(run, header, watcher.warn)
        try:
            stop.check()
            if attempt.finished:
                stop.hold()
                return finished_result(run, attempt, steps)
            return _Job(run, attempt, data, watcher, stop, peers).run(steps)
        finally:
            attempt.close()
    except BaseException as error:
        state = run_status.state_of(error)
        if isinstance(error, CnnJobsError):
            error.run_key = run.key
        raise
    finally:
        watcher.end(state)


class _Job:
    """The parts of one attempt, and the order in which they act."""

    def __init__(
        self,
        run: Run,
        attempt: Attempt,
        data: Parts[ImageSet],
        watcher: Watcher,
        stop: StopRequest,
        peers: Peers,
    ) -> None:
        self.task_run, self.attempt, self.images, self.watcher, self.stop = run, attempt, data, watcher, stop
        self.peers = peers
        self.start_step = attempt.checkpoint["step"] if attempt.checkpoint else 0
        self.step = self.start_step
        self.saver: CheckpointSaver | None = None
        self.plan: FeaturePlan | None = None
        self.book = resume.cost_book_of(run, attempt)
        self.recorder = JournalRecorder(
            run.folder,
            attempt.remote,
            attempt.journal,
            attempt.header,
            attempt.mark,
            ledger=self.book.as_json,
            on_tick=self.book.write,
        )
        peers.saved = self._saved

    def run(self, steps: int) -> RunResult:
        """Everything from the first record to the run's status."""
        run, recorder, stop = self.task_run, self.recorder, self.stop
        stopped_early = False
        began = time.time() - (time.monotonic() - run.began)
        self.watcher.opened(LiveAttempt(run, began, steps, self.start_step, recorder, self.book))
        try:
            # A signal in this moment waits: the run that was just made must not stay RUNNING for ever.
            with stop.deferred():
                self.book.write()
                recorder.start(CONTACT_S, stop.requested)
            stop.check()
            if recorder.outage:
                self.watcher.warn(f"{recorder.outage}; the training goes on, {run.folder} keeps what MLflow has to get")
            self.watcher.begin(run.name, steps * run.recipe.epochs)
            state = resume.state_of(run, self.attempt)
            if self.attempt.is_trained and run.options.resume != "never":
                metrics = last_metrics(self.attempt.entries)
            else:
                metrics = self._train_to_the_end(state)
            self.step, stopped_early = state.step, state.stopped_early
            self._deliver()
        except BaseException as error:
            with stop.deferred():
                self._end_badly(error)
            if isinstance(error, SystemExit):  # a library's: a run that did not finish must not exit with 0
                raise CnnJobsError(f"something called sys.exit({error.code})") from error
            raise
        return RunResult(
            run_id=recorder.run_id,
            url=recorder.url,
            name=run.name,
            recipe=run.recipe,
            metrics={name: value for name, value in metrics.items() if name.startswith(("best/", "last/"))},
            steps=self.step,
            stopped_early=stopped_early,
            seconds=time.monotonic() - run.began,
        )

    # -- the training --------------------------------------------------------------------------------------------

    def _train_to_the_end(self, state: TrainState) -> dict[str, float]:
        """Training, final figures and files; returns the final metrics."""
        run, recorder, stop = self.task_run, self.recorder, self.stop
        self.plan = plan_features(run, state.frozen, self.images) if state.frozen else None
        with stop.deferred():
            resume.record_beginning(run, self.attempt, state, recorder, self.watcher.warn, self.plan)
        stop.check()
        saver = self.saver = CheckpointSaver(run, state, recorder, self.attempt.journal, self.book, self.plan)
        data = self._features(state)
        group = self.peers.start(run.threads, run.placement.device)
        with stop.deferred():
            try:
                group.adopt(state)
                ending = train(
                    state,
                    data,
                    run.recipe,
                    group=group,
                    recorder=Recorders(recorder, self.watcher),
                    ledger=run.ledger,
                    should_stop=lambda: stop.requested() or recorder.failure is not None,
                    on_validation=saver.after_validation,
                    save_due=saver.due,
                    on_save=saver.save,
                    graph=run.options.graph,
                )
                group.close(state)
            except PeerLostError:
                if run.placement.device.type == "cpu":  # elsewhere a step that was broken off may have left its marks
                    saver.save_and_ship(state)
                raise
            finally:
                self.step = state.step
            if ending is Ending.INTERRUPTED:
                path = saver.save_and_ship(state)
                self._raise_if_failed()
                who = stop.signal_name or "another process"
                raise InterruptedRunError(f"stopped by {who} after step {state.step}; its state is in {path}")
        stop.check()
        self.watcher.phase(Phase.EVALUATION, "final figures of the best and the last model")
        results = artifacts.final_evaluations(state, data, run.recipe, run.ledger)
        metrics = artifacts.final_metrics(state, results)
        self.watcher.phase(Phase.OUTPUTS, "plots, tables and model")
        folder = make_folder(run.folder / "artifacts")
        artifacts.write(run.task, state, results, data, run.dataset.classes, folder)
        with stop.deferred():
            recorder.metrics(metrics, state.step)
            recorder.artifact(folder, "")
            saver.ship_final(state)
            recorder.tags({names.NOTE: record.note(run.task, run.recipe, run.dataset, metrics)})
            self.book.attempt = recorder.attempt
            record.record_costs(self.book, state.step, recorder)
        return metrics

    def _raise_if_failed(self) -> None:
        for failure in (self.recorder.failure, self.stop.fault):
            if failure:
                raise failure

    def _features(self, state: TrainState) -> TrainingData:
        """What the trained layers take: the images, or what the frozen trunk makes of them."""
        if self.plan is None:
            return self.images
        stop, recorder, ledger = self.stop, self.recorder, self.task_run.ledger

        def should_stop() -> bool:
            return stop.requested() or recorder.failure is not None

        resumed = self.attempt.checkpoint is not None
        with stop.deferred():
            data = features_of_run(
                self.task_run, self.plan, self.images, self.watcher, should_stop, self.book, resumed=resumed
            )
            self._raise_if_failed()
            if data is None:
                raise InterruptedRunError(f"stopped by {stop.signal_name} in the frozen trunk's pass over the images")
            if ledger.feature_seconds:
                recorder.metrics({names.FEATURE_SECONDS: ledger.feature_seconds}, state.step)
        return data

    # -- the end -------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Waits until MLflow has everything. Raises ``NotShippedError`` where it has not in time."""
        run, stop = self.task_run, self.stop
        with stop.deferred():
            stop.check()
            self.watcher.phase(Phase.SHIPPING, "sending the rest to MLflow")
            delivered = self.recorder.finish(run_status.finished(), run.options.ship_deadline_s, stop.requested)
            if not delivered:
                why = self.recorder.outage or stop.signal_name or "time is up"
                # After a signal the next attempt has less to do in any case.
                kept = run.options.state_outlives_process or (bool(stop.signal_name) and self._saved())
                raise NotShippedError(
                    f"the training is complete, but MLflow lacks part of it ({why}); the rest is in {run.folder}",
                    kept=kept,
                )
            stop.hold()  # it is FINISHED: no later signal makes it anything else

    def _end_badly(self, error: BaseException) -> None:
        """Says in MLflow how the run ended; what MLflow answers to that no longer changes the outcome."""
        ending, options = run_status.ending_of(error), self.task_run.options
        if isinstance(error, NotShippedError):
            return
        if ending is None:
            self.recorder.abandon()
            return
        deadline = min(options.ship_deadline_s, FAILURE_DEADLINE_S)
        if ending.state == "interrupted":
            deadline = self.stop.seconds_left(FLUSH_TIMEOUT_S)
        try:
            self.recorder.finish(ending, deadline, self.stop.requested)
        except CnnJobsError as second:
            if second is not error:
                error.add_note(f"and the run's end could not be told: {second}")
        if isinstance(error, InterruptedRunError) and self._saved():
            error.exit_code = CONTINUE

    def _saved(self) -> bool:
        """Whether this attempt brought the run further, by what outlives this process."""
        recorder, run = self.recorder, self.task_run
        if recorder.progress > 0:
            return True
        if not run.options.state_outlives_process:
            return self.step > self.start_step and (recorder.delivered or recorder.checkpoints_sent > 0)
        on_disk = self.plan is not None and self.plan.mode == "disk" and run.ledger.feature_seconds > 0
        kept_step = self.saver.saved_step if self.saver else self.step
        return kept_step > self.start_step or on_disk


def finished_result(run: Run, attempt: Attempt, steps_per_epoch: int) -> RunResult:
    """Reads the result back from MLflow: nothing is trained and nothing is changed."""
    there = attempt.remote_run
    assert there
    rows = attempt.remote.history(there.run_id, names.LAST_TEST_LOSS)
    steps = rows[-1].step if rows else 0
    return RunResult(
        run_id=there.run_id,
        url=run_url(attempt.remote.uri, there.experiment_id, there.run_id),
        name=there.name,
        recipe=run.recipe,
        metrics={name: value for name, value in there.metrics.items() if name.startswith(("best/", "last/"))},
        steps=steps,
        stopped_early=steps < steps_per_epoch * run.recipe.epochs,
        seconds=there.metrics.get(names.WALL_SECONDS, 0.0),
        note="finished before; nothing was trained",
    )
