"""One run, from its recipe to its result."""

from __future__ import annotations

import time
from collections.abc import Mapping

from cnn_jobs.data.batches import TrainingData
from cnn_jobs.errors import CONTINUE, CnnJobsError, InterruptedRunError, PeerLostError
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs import artifacts, record, resume
from cnn_jobs.runs.checkpointing import RunCheckpointer
from cnn_jobs.runs.resume import StartingPoint
from cnn_jobs.runs.setup import Run, RunResult, Session, prepare
from cnn_jobs.system.files import make_folder
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.connection import run_url
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.run_folder import RunFolder, latest_metrics
from cnn_jobs.training.feature_cache import FeaturePlan
from cnn_jobs.training.loop import LoopResult, train
from cnn_jobs.training.observer import Phase, fan_out
from cnn_jobs.training.state import TrainState


def train_run(session: Session, recipe: Recipe) -> RunResult:
    """Trains one run, or resumes it, and leaves it FINISHED in MLflow, with everything in it.

    A run that is FINISHED already is only read back. Any other end raises: the run is then FAILED or, after a signal or
    the loss of a process, KILLED, with the reason in a tag.
    """
    session.stop.unmask()
    run = prepare(session, recipe)
    session.rendezvous.join(run.facts(), run.exclusive_device())
    state = run_status.FINISHED
    try:
        session.stop.check()
        with RunFolder(run.folder) as folder:
            start = resume.find_start(run, folder, session.observer.warn)
            session.stop.check()
            if start.finished:
                session.stop.mask()
                return _finished_result(run, start)
            return Attempt(run, start).complete()
    except BaseException as error:
        state = run_status.state_after(error)
        if isinstance(error, CnnJobsError):
            error.run_key = run.key
        raise
    finally:
        session.observer.attempt_ended(state)


def _finished_result(run: Run, start: StartingPoint) -> RunResult:
    """The result of a run that is FINISHED in MLflow: nothing is trained, and nothing changes."""
    found = start.remote_run
    assert found
    rows = start.client.history(found.run_id, names.LAST_TEST_LOSS)
    steps = rows[-1].step if rows else 0
    return RunResult(
        run_id=found.run_id,
        url=run_url(start.client.uri, found.experiment_id, found.run_id),
        name=found.name,
        recipe=run.recipe,
        metrics=_final_metrics(found.metrics),
        steps=steps,
        stopped_early=steps < run.steps_per_epoch * run.recipe.epochs,
        seconds=found.metrics.get(names.WALL_SECONDS, 0.0),
        note="finished before; nothing was trained",
    )


def _final_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(names.FINAL_PREFIXES)}


class Attempt:
    """One process' work on a run, as rank 0. Observers see it as a ``LiveAttempt``."""

    def __init__(self, run: Run, start: StartingPoint) -> None:
        self.run_key, self.device_type = run.key, run.placement.device.type
        self.batch_size, self.epochs, self.steps_per_epoch = (
            run.recipe.batch_size,
            run.recipe.epochs,
            run.steps_per_epoch,
        )
        self.first_step = self._step = start.step
        self._run, self._start, self._stop = run, start, run.session.stop
        self._observer, self._rendezvous = run.session.observer, run.session.rendezvous
        self._cost = resume.cost_of(run, start)
        self._recorder = JournalRecorder(start.folder, start.client, start.header, start.mark, self._cost.write)
        self._checkpointer: RunCheckpointer | None = None
        self._plan: FeaturePlan | None = None
        self._began_at = time.time() - (time.monotonic() - run.began)
        self._rendezvous.made_progress = self.made_progress

    def complete(self) -> RunResult:
        """Everything from the first record to the run's status."""
        run, recorder, stop = self._run, self._recorder, self._stop
        self._observer.attempt_opened(self)
        try:
            # Masked, because the run that is created here must not stay RUNNING.
            with stop.masked():
                self._cost.write()
                recorder.start(stop.requested)
            stop.check()
            if recorder.outage:
                kept = f"{run.folder} keeps what MLflow lacks"
                self._observer.warn(f"{recorder.outage}; the training continues, and {kept}")
            self._observer.training_started(run.name, run.steps_per_epoch * run.recipe.epochs)
            state = resume.state_of(run, self._start)
            if self._start.is_trained and run.options.resume != "never":
                metrics = latest_metrics(self._start.folder.entries)
            else:
                metrics = self._train(state)
            self._step = state.step
            self._deliver()
        except BaseException as error:
            with stop.masked():
                self._fail(error)
            if isinstance(error, SystemExit):  # of a library: a run that did not finish must not exit with 0
                raise CnnJobsError(f"something called sys.exit({error.code})") from error
            raise
        return RunResult(
            run_id=recorder.run_id,
            url=recorder.url,
            name=run.name,
            recipe=run.recipe,
            metrics=_final_metrics(metrics),
            steps=self._step,
            stopped_early=state.stopped_early,
            seconds=time.monotonic() - run.began,
        )

    # -- training --------------------------------------------------------------------------------------------------

    def _train(self, state: TrainState) -> dict[str, float]:
        """Training, final figures and files; returns the final metrics."""
        run, recorder, stop, observer = self._run, self._recorder, self._stop, self._observer
        self._plan = run.plan_features(state)
        with stop.masked():
            resume.record_beginning(run, self._start, state, recorder, observer.warn, self._plan)
        stop.check()
        journal = self._start.folder.journal
        checkpointer = self._checkpointer = RunCheckpointer(run, state, recorder, journal, self._cost, self._plan)
        data = self._data(state)
        group = self._rendezvous.start(run.threads, run.placement.device)
        with stop.masked():
            try:
                group.broadcast_state(state)
                result = train(
                    state,
                    data,
                    run.recipe,
                    group=group,
                    observer=fan_out(recorder, observer),
                    checkpointer=checkpointer,
                    spent=run.spent,
                    should_stop=self._should_stop,
                    graph=run.options.graph,
                )
                group.close(state)
            except PeerLostError:
                if self.device_type == "cpu":  # on CUDA an aborted step may have left its marks on the state
                    checkpointer.save_and_upload(state)
                raise
            finally:
                self._step = state.step
            if result is LoopResult.INTERRUPTED:
                path = checkpointer.save_and_upload(state)
                self._raise_failure()
                who = stop.signal_name or "another process"
                raise InterruptedRunError(f"stopped by {who} after step {state.step}; its state is in {path}")
        stop.check()
        observer.phase_changed(Phase.EVALUATION, "final figures of the best and the last model")
        results = artifacts.final_evaluations(state, data, run.recipe, run.spent)
        metrics = artifacts.final_metrics(state, results)
        observer.phase_changed(Phase.OUTPUTS, "plots, tables and model")
        folder = make_folder(run.folder / "artifacts")
        artifacts.write_artifacts(run.task, state, results, data, run.dataset.classes, folder)
        with stop.masked():
            recorder.metrics(metrics, state.step)
            recorder.artifact(folder, "")
            checkpointer.upload_final(state)
            recorder.tags({names.NOTE: record.note(run.task, run.recipe, run.dataset, metrics)})
            self._cost.attempt = recorder.attempt
            record.record_costs(self._cost, state.step, recorder)
        return metrics

    def _data(self, state: TrainState) -> TrainingData:
        """The inputs of the trained layers: the images, or their features from the frozen backbone."""
        if self._plan is None:
            return self._run.data
        run, stop, resumed = self._run, self._stop, self._start.checkpoint is not None
        with stop.masked():
            data = run.session.features.load(
                self._plan, self._observer, run.spent, self._should_stop, run_key=run.key, resumed=resumed
            )
            self._raise_failure()
            if data is None:
                raise InterruptedRunError(f"stopped by {stop.signal_name} while the backbone computed its features")
            if run.spent.feature_seconds:
                self._recorder.metrics({names.FEATURE_SECONDS: run.spent.feature_seconds}, state.step)
        return data

    def _should_stop(self) -> bool:
        return self._stop.requested() or self._recorder.failure is not None

    def _raise_failure(self) -> None:
        for failure in (self._recorder.failure, self._stop.thread_error):
            if failure:
                raise failure

    # -- the end ---------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Waits until MLflow has everything. Raises ``NotShippedError`` where it has not in time."""
        options, stop = self._run.options, self._stop

        def kept() -> bool:
            # After a signal the next attempt has less to do in any case.
            return options.state_outlives_process or (bool(stop.signal_name) and self.made_progress())

        with stop.masked():
            stop.check()
            self._observer.phase_changed(Phase.SHIPPING, "sending the rest to MLflow")
            self._recorder.deliver("the training is complete", options.ship_deadline_s, stop, kept=kept)
            stop.mask()  # it is FINISHED, and no later signal changes that

    def _fail(self, error: BaseException) -> None:
        """Records how the run ended; what MLflow answers no longer changes the outcome."""
        second = self._recorder.fail(error, self._run.options.ship_deadline_s, self._stop)
        if second:
            error.add_note(f"and the end of the run could not be recorded: {second}")
        if isinstance(error, InterruptedRunError) and self.made_progress():
            error.exit_code = CONTINUE

    def made_progress(self) -> bool:
        """Whether this attempt advanced the run, by what outlives this process."""
        recorder, run = self._recorder, self._run
        if recorder.progress > 0:
            return True
        if not run.options.state_outlives_process:
            return self._step > self.first_step and (recorder.delivered or recorder.checkpoints_sent > 0)
        on_disk = self._plan is not None and self._plan.mode == "disk" and run.spent.feature_seconds > 0
        kept_step = self._checkpointer.saved_step if self._checkpointer else self._step
        return kept_step > self.first_step or on_disk

    # -- for observers -----------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The attempt's number among those of the run."""
        return self._recorder.attempt

    @property
    def steps_done(self) -> int:
        """Optimiser steps of this attempt."""
        return self._run.spent.steps

    @property
    def checkpointed_at(self) -> float:
        """When the last checkpoint was written, or else when the attempt began, in seconds since 1970."""
        return (self._checkpointer.saved_at if self._checkpointer else 0.0) or self._began_at

    def costs(self) -> Mapping[str, float]:
        """Total costs of the run so far, by metric name."""
        return self._cost.totals()

    def backlog(self) -> tuple[int, float]:
        """Records that MLflow has not acknowledged, and for how many seconds it has lacked any."""
        return self._recorder.backlog()

    def upload_errors(self) -> Mapping[str, int]:
        """Failed calls to MLflow, by kind."""
        return self._recorder.upload_errors
