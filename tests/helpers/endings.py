"""How a run can end: one row an ending, with what happens to its process and what must be the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.helpers.forkserver import Completed
from tests.helpers.servers import unused_url
from tests.helpers.survival import Lab

# From the signal to the end of the process: a pod may have no more.
LONGEST_STOP_S = 10.0


@dataclass(frozen=True)
class Ending:
    """What is done to a process, and the expected result. ``status`` "": no run in MLflow."""

    name: str
    code: int
    status: str
    state: str
    reason: str = ""
    hook: str = "cheap_outputs"
    hook_args: tuple[Any, ...] = ()
    options: tuple[object, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, lab: Lab, key: str, **environment: str) -> Completed:
        """One attempt with this ending."""
        own = {**self.environment, **environment}
        return lab.train("task2", key, *self.options, hook=self.hook, hook_args=self.hook_args, **own)


def error_in(name: str, target: str, error: str, reason: str, at_call: int = 1) -> Ending:
    """``target`` raises the built-in ``error``."""
    return Ending(name, 1, "FAILED", "failed", reason, "raise_in", (target, error, at_call))


def signal_in(name: str, target: str, times: int = 1) -> Ending:
    """SIGTERM before ``target`` is called, in a run that has made progress."""
    args = (target, "SIGTERM", times)
    return Ending(name, 75, "KILLED", "interrupted", "stopped by", "signal_before", args)


def signal_before_run(name: str, target: str) -> Ending:
    """SIGTERM before ``target`` is called, when there is no run yet."""
    return Ending(name, 1, "", "", "", "signal_before", (target, "SIGTERM", 1))


def signal_in_step(sent: str) -> Ending:
    """A signal at step 5."""
    reason = f"stopped by {sent} after step 5"
    return Ending(f"{sent} in a step", 75, "KILLED", "interrupted", reason, "signal_at_step", (5, sent))


_AWAY = {"MLFLOW_TRACKING_URI": unused_url()}
_BUG, _LOG_METRICS = "ZeroDivisionError", "cnn_jobs.tracking.client:TrackingClient.log_metrics"
ENDINGS = [
    Ending("complete", 0, "FINISHED", "finished"),
    Ending("diverged", 2, "FAILED", "diverged", "the training loss is", options=("--lr", "1e12")),
    error_in("bug in the main thread", "cnn_jobs.runs.artifacts:final_metrics", _BUG, f"{_BUG}: made by"),
    error_in("out of memory, as an exception", "cnn_jobs.training.loop:validate", "MemoryError", "MemoryError"),
    error_in("library calls sys.exit(0)", "cnn_jobs.runs.artifacts:write_artifacts", "SystemExit", "SystemExit"),
    error_in("bug in the uploader thread", _LOG_METRICS, _BUG, f"the uploader thread died of {_BUG}"),
    error_in("lasting bug in the uploader thread", _LOG_METRICS, _BUG, f"the uploader thread died of {_BUG}", 0),
    error_in("bug before the first step", "cnn_jobs.runs.setup:new_state", _BUG, f"{_BUG}: made by"),
    Ending(
        "bug in the journal thread", 1, "FAILED", "failed", f"the journal thread died of {_BUG}", "journal_thread_dies"
    ),
    Ending(
        "a library's thread dies", 1, "FAILED", "failed", f"thread library died of {_BUG}", "thread_dies_at_step", (3,)
    ),
    signal_in_step("SIGTERM"),
    signal_in_step("SIGINT"),
    signal_in("two SIGTERMs", "cnn_jobs.training.loop:validate", 2),
    signal_in("SIGTERM in a validation", "cnn_jobs.data.batches:ImageSet.in_order"),
    signal_in("SIGTERM in a checkpoint's write", "cnn_jobs.runs.checkpointing:save_checkpoint"),
    signal_in("SIGTERM in the final figures", "cnn_jobs.runs.artifacts:final_metrics"),
    signal_in("SIGTERM in the plots", "cnn_jobs.runs.artifacts:write_artifacts"),
    signal_before_run("SIGTERM while data is loaded", "cnn_jobs.data.sources:open_dataset"),
    signal_before_run("SIGTERM while the run is looked up", "cnn_jobs.runs.resume:find_run"),
    Ending("SIGKILL in a step", -9, "RUNNING", "running", "", "signal_at_step", (5, "SIGKILL")),
    Ending("record that MLflow refuses", 1, "FAILED", "failed", "MLflow refused 1 records", "refused_metric"),
    Ending("MLflow away, state kept", 75, "", "", options=("--ship-deadline", 0.5), environment=_AWAY),
    Ending(
        "MLflow away, state lost with the pod",
        1,
        "",
        "",
        options=("--ship-deadline", 0.5, "--no-durable-state"),
        environment=_AWAY,
    ),
]
