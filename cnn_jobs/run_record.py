"""What a run says of itself in MLflow: where it comes from, what it spent, how it ended."""

from __future__ import annotations

import json
import time

from cnn_jobs.errors import CnnJobsError, DivergedError, InterruptedRunError
from cnn_jobs.files import make_folder, write_text
from cnn_jobs.models.describe import as_markdown, describe
from cnn_jobs.reporting import description
from cnn_jobs.run import Run
from cnn_jobs.tracking import lineage
from cnn_jobs.tracking.mlflow_recorder import MlflowRecorder
from cnn_jobs.tracking.records import DatasetInput


def first_tags(run: Run) -> dict[str, str]:
    """The tags that the run is made with."""
    identity = {f"cnn_jobs.{key}": str(value) for key, value in run.identity().items()}
    return {
        **identity,
        "cnn_jobs.attempt": "1",
        "cnn_jobs.state": "running",
        "cnn_jobs.group": run.options.group or run.key,
        "cnn_jobs.data": run.dataset.name,
        "cnn_jobs.synthetic_data": str(run.dataset.synthetic).lower(),
        "mlflow.source.name": "cnn-jobs",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": description.note(run.task, run.recipe, run.dataset),
    }


def record_start(run: Run, recorder: MlflowRecorder) -> None:
    """Params, data set, lineage and the network's table, before the first step."""
    facts = lineage.collect(run.placement.device, run.threads)
    recorder.params({"task": run.task.name, **run.recipe.as_dict()})
    recorder.tags(
        {
            "mlflow.source.git.commit": facts["git"]["commit"],
            "cnn_jobs.git_dirty": facts["git"]["dirty"],
            "cnn_jobs.device": facts["device"],
            "cnn_jobs.threads": run.threads,
            "cnn_jobs.deterministic": not run.options.fast,
        }
    )
    dataset = run.dataset
    profile = {
        "train_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
        "image": list(run.image),
        "classes": list(dataset.classes),
        "synthetic": dataset.synthetic,
    }
    recorder.dataset(DatasetInput(dataset.name, dataset.digest, dataset.uri, profile))
    data_facts = {"uri": dataset.uri, "digest": dataset.digest, **profile}
    content = {**run.identity(), "recipe": run.recipe.as_dict(), "data": data_facts, **facts}
    outbox = make_folder(run.folder / "outbox")
    recorder.artifact(write_text(outbox / "lineage.json", json.dumps(content, indent=2) + "\n"))
    table = as_markdown(describe(run.task.network, run.image, len(dataset.classes)))
    recorder.artifact(write_text(outbox / "network.md", table))


def record_ledger(run: Run, recorder: MlflowRecorder) -> None:
    """What this attempt spent; the step of these metrics is the attempt's number."""
    attempt = 1
    ledger = run.ledger
    recorder.metrics(
        {
            "attempt/steps": ledger.steps,
            "attempt/device_seconds": ledger.device_seconds,
            "attempt/wall_seconds": time.perf_counter() - run.started,
        },
        attempt,
    )


def record_failure(run: Run, recorder: MlflowRecorder, error: BaseException) -> None:
    """Says in MLflow how the run ended; what MLflow answers to that no longer changes the outcome."""
    interrupted = isinstance(error, InterruptedRunError | KeyboardInterrupt)
    diverged = isinstance(error, DivergedError)
    state = "interrupted" if interrupted else "diverged" if diverged else "failed"
    reason = str(error) if isinstance(error, CnnJobsError) else f"{type(error).__name__}: {error}"
    record_ledger(run, recorder)
    recorder.tags({"cnn_jobs.state": state, "cnn_jobs.reason": reason[:1000]})
    try:
        recorder.finish("KILLED" if interrupted else "FAILED", run.options.ship_deadline_s)
    except CnnJobsError as second:
        error.add_note(f"and the run's end could not be recorded: {second}")
