"""A process of a distributed run that is not rank 0: it trains, and leaves everything else to rank 0.

It does not connect to MLflow, keeps no journal and writes no checkpoint. Its end is that of rank 0; where rank 0
vanished, its last status decides between exit codes 75 and 1.
"""

from __future__ import annotations

from cnn_jobs.data.batches import TrainingData
from cnn_jobs.distributed.rendezvous import DistributedRendezvous
from cnn_jobs.errors import CONTINUE, InterruptedRunError
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs.setup import Run, Session, prepare
from cnn_jobs.tracking import run_status
from cnn_jobs.training.loop import train
from cnn_jobs.training.observer import Phase


def train_worker(session: Session, recipe: Recipe) -> None:
    """Trains with rank 0, until that has finished the run. Raises what the run ended with."""
    rendezvous, observer = session.rendezvous, session.observer
    assert isinstance(rendezvous, DistributedRendezvous)
    state = run_status.FINISHED
    try:
        run = prepare(session, recipe)
        observer.training_started(f"{run.name}, {rendezvous.world.name}", run.steps_per_epoch * recipe.epochs)
        rendezvous.join(run.facts(), run.exclusive_device())
        threads = rendezvous.wait_for_threads()
        if threads is not None:
            run.threads = threads
            _train(run)
        observer.phase_changed(Phase.SHIPPING, "waiting for rank 0 to finish the run")
        with session.stop.masked():  # rank 0 learns of the signal, and handles it
            rendezvous.wait_for_end()
        session.stop.mask()
    except BaseException as error:
        if isinstance(error, InterruptedRunError) and rendezvous.status(0, "saved"):
            error.exit_code = CONTINUE
        state = run_status.state_after(error)
        raise
    finally:
        observer.attempt_ended(state)


def _train(run: Run) -> None:
    session, stop = run.session, run.session.stop
    state = run.new_state()
    with stop.masked():
        data: TrainingData | None = run.data
        if plan := run.plan_features(state):
            data = session.features.load(plan, session.observer, run.spent, stop.requested)
    stop.check()
    assert data is not None
    group = session.rendezvous.start(run.threads, run.placement.device)
    with stop.masked():
        group.broadcast_state(state)
        train(state, data, run.recipe, group=group, spent=run.spent, should_stop=stop.requested)
        group.close(state)
