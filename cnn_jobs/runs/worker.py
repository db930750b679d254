"""A process of a distributed training that is not rank 0: it trains, and leaves everything else to that one.

It opens no connection to MLflow, keeps no journal and writes no checkpoint. How it ends is what rank 0 says; where that
is gone without a word, what it last said of the run's progress decides between 75 and 1.
"""

from __future__ import annotations

from cnn_jobs.data.batches import ImageSet, Parts, TrainingData
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.distributed.rendezvous import Company
from cnn_jobs.errors import CONTINUE, InterruptedRunError
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs import resume
from cnn_jobs.runs.setup import Run, RunOptions, device_of, facts_of, prepare
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import run_status
from cnn_jobs.training.feature_cache import features_of_run, plan_features
from cnn_jobs.training.loop import train
from cnn_jobs.training.observer import Phase, Watcher
from cnn_jobs.training.state import TrainState


def follow_task(
    task: Task,
    recipe: Recipe,
    options: RunOptions,
    dataset: Dataset,
    watcher: Watcher,
    stop: StopRequest,
    peers: Company,
) -> None:
    """Trains with rank 0, until that has finished the run. Raises what the run ended with."""
    state = run_status.FINISHED
    try:
        run, images, steps = prepare(task, recipe, options, dataset, peers.world)
        watcher.begin(f"{run.name}, {peers.world.name}", steps * recipe.epochs)
        peers.join(facts_of(run), device_of(run))
        go = peers.wait_for_go()
        if go:
            run.threads = go["threads"]
            _train(run, images, watcher, stop, peers)
        watcher.phase(Phase.SHIPPING, "waiting for rank 0 to finish the run")
        with stop.deferred():  # a signal is rank 0's to answer, which hears of it
            peers.wait_for_end()
        stop.hold()
    except BaseException as error:
        if isinstance(error, InterruptedRunError) and peers.said(0, "saved"):
            error.exit_code = CONTINUE
        state = run_status.state_of(error)
        raise
    finally:
        watcher.end(state)


def _train(run: Run, images: Parts[ImageSet], watcher: Watcher, stop: StopRequest, peers: Company) -> None:
    state = resume.fresh_state(run)
    data = _features(run, state, images, watcher, stop, peers)
    group = peers.start(run.threads, run.placement.device)
    with stop.deferred():
        group.adopt(state)
        train(state, data, run.recipe, group=group, ledger=run.ledger, should_stop=stop.requested)
        group.close(state)


def _features(
    run: Run, state: TrainState, images: Parts[ImageSet], watcher: Watcher, stop: StopRequest, peers: Company
) -> TrainingData:
    if state.frozen is None:
        return images
    with stop.deferred():
        plan = plan_features(run, state.frozen, images)
        data = features_of_run(run, plan, images, watcher, stop.requested)
    stop.check()
    assert data is not None
    return data
