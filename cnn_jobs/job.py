"""One run from arguments to its end: the only place that wires data, networks, training and tracking together."""

from __future__ import annotations

import time
from pathlib import Path

from cnn_jobs import outputs, run_record
from cnn_jobs.data.batches import TrainingData, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import InterruptedRunError
from cnn_jobs.files import make_folder
from cnn_jobs.recipe import Recipe
from cnn_jobs.reporting import description
from cnn_jobs.run import JobOptions, Run, RunResult, Watcher
from cnn_jobs.stop import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.tracking.mlflow_recorder import MlflowRecorder
from cnn_jobs.tracking.records import RunRequest
from cnn_jobs.training.checkpoint import save_checkpoint
from cnn_jobs.training.device import available_threads, configure_arithmetic, select_device
from cnn_jobs.training.loop import Ending, train, validation_batches
from cnn_jobs.training.recorder import Recorders
from cnn_jobs.training.state import TrainState, new_state


def run_task(
    task: Task, recipe: Recipe, options: JobOptions, dataset: Dataset, watcher: Watcher, stop: StopRequest
) -> RunResult:
    """Trains one run and leaves it in MLflow, FINISHED with everything in it.

    Any other end raises: the run is then FAILED or, after a signal, KILLED, with the reason in a tag.
    """
    # All that can be refused is looked at before MLflow hears of the run: a mistake leaves no run behind.
    placement = select_device(options.device, fast=options.fast)
    threads = options.threads or available_threads()
    configure_arithmetic(threads, fast=options.fast)
    run = Run(task, recipe, options, dataset, placement, threads)
    data = place_on_device(dataset, recipe, task.transform, placement.device, placement.memory_format)
    steps = data.steps_per_epoch(recipe.batch_size)
    validation_batches(steps, recipe, len(data.train))
    state = new_state(task.network, recipe, run.image, len(dataset.classes), placement)
    make_folder(run.folder)

    recorder = MlflowRecorder(
        options.tracking_uri,
        RunRequest(options.experiment, run.name, run_record.first_tags(run), options.parent_run_id),
    )
    # A signal in this moment waits: the run that was just made must not stay RUNNING for ever.
    with stop.deferred():
        recorder.start()
    try:
        stop.check()
        watcher.begin(run.name, steps * recipe.epochs)
        run_record.record_start(run, recorder)
        metrics = _train_to_the_end(run, state, data, recorder, watcher, stop)
        with stop.deferred():
            recorder.tags({"cnn_jobs.state": "finished"})
            watcher.phase("sending the rest to MLflow")
            recorder.finish("FINISHED", options.ship_deadline_s)
    except BaseException as error:
        with stop.deferred():
            run_record.record_failure(run, recorder, error)
        raise
    finally:
        watcher.end()
    return RunResult(
        run_id=recorder.run_id,
        url=recorder.url,
        name=run.name,
        recipe=recipe,
        metrics=metrics,
        steps=state.step,
        stopped_early=state.stopped_early,
        seconds=time.perf_counter() - run.started,
    )


def _train_to_the_end(
    run: Run,
    state: TrainState,
    data: TrainingData,
    recorder: MlflowRecorder,
    watcher: Watcher,
    stop: StopRequest,
) -> dict[str, float]:
    """Training, final figures and files; returns the final metrics."""
    with stop.deferred():
        ending = train(
            state,
            data,
            run.recipe,
            recorder=Recorders(recorder, watcher),
            ledger=run.ledger,
            should_stop=lambda: stop.requested() or recorder.failure is not None,
            on_validation=lambda state: _save_checkpoints(run, state),
        )
    if ending is Ending.INTERRUPTED:
        path = _save_checkpoints(run, state)
        if recorder.failure:
            raise recorder.failure
        raise InterruptedRunError(f"stopped by {stop.signal_name} after step {state.step}; the state is in {path}")
    watcher.phase("final figures of the best and the last model")
    results = outputs.final_evaluations(state, data, run.recipe, run.ledger)
    metrics = outputs.final_metrics(state, results)
    recorder.metrics(metrics, state.step)
    watcher.phase("plots, tables and model")
    outbox = make_folder(run.folder / "outbox")
    outputs.write(run.task, state, results, data, run.dataset.classes, outbox)
    for path in sorted(outbox.iterdir()):
        recorder.artifact(path, path.name if path.is_dir() else "")
    recorder.artifact(run.folder / "checkpoints", "checkpoints")
    run_record.record_ledger(run, recorder)
    recorder.tags({"mlflow.note.content": description.note(run.task, run.recipe, run.dataset, metrics)})
    return metrics


def _save_checkpoints(run: Run, state: TrainState) -> Path:
    """Writes ``last.pt`` and, where this validation was the best, ``best.pt``; returns the path of the first."""
    folder, identity = run.folder / "checkpoints", {**run.identity(), "recipe": run.recipe.as_dict()}
    best = state.best
    if best and best.validation.step == state.step:
        content = {"model": best.weights, "step": best.validation.step, "val_loss": best.validation.loss}
        save_checkpoint(folder / "best.pt", {**content, **identity, "classes": list(run.dataset.classes)})
    return save_checkpoint(folder / "last.pt", {**state.state_dict(), **identity})
