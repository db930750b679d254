"""A run that only records, for children that are killed and resumed behind a fault proxy."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def settings(uri: str) -> None:
    """Intervals of fractions of a second, so that hundreds of schedules take minutes."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    from cnn_jobs.tracking import ownership, recorder

    recorder.UPLOAD_INTERVAL_S = recorder.FIRST_PAUSE_S = 0.03
    recorder.LONGEST_PAUSE_S = recorder.LONGEST_LAST_PAUSE_S = 0.2
    ownership.HEARTBEAT_INTERVAL_S, ownership.STILL_S, ownership.POLL_S = 0.3, 1.0, 0.1


def run(folder: str, uri: str, key: str, steps: int, back: int, deadline_s: float, control: str = "") -> None:
    """One attempt, in place of the command; exit codes: 0 delivered, 1 rejected, 75 not everything sent, 76 other.

    ``back``: how many of the last steps are recorded again, as after a resumption from a checkpoint. ``control``: a
    control experiment, ``memory`` or ``search``.
    """
    settings(uri)
    if control:
        globals()[f"_without_{control}"]()
    from cnn_jobs.errors import CnnJobsError, RejectedRecordsError
    from cnn_jobs.tracking import run_status
    from cnn_jobs.tracking.document_run import open_recorder
    from cnn_jobs.tracking.records import RunHeader, now_ms
    from cnn_jobs.tracking.run_folder import RunFolder

    code = 75
    run_folder = RunFolder(Path(folder) / key)
    recorder = open_recorder(run_folder, uri, RunHeader("faults", key, key, now_ms(), {"who": key}))
    try:
        recorder.start(contact_s=0.2)
        _record(recorder, run_folder.path, steps, back)
        code = 0 if recorder.finish(run_status.finished(), deadline_s) else 75
    except RejectedRecordsError:
        code = 1
    except CnnJobsError as error:
        sys.stderr.write(f"{error}\n")
        code = 76
    sys.stderr.flush()
    os._exit(code)


def _record(recorder: Any, folder: Path, steps: int, back: int) -> None:
    from cnn_jobs.tracking.journal import Reader
    from cnn_jobs.tracking.records import DatasetInput

    entries = Reader(folder / "journal.jsonl").read()
    kinds = {entry.kind for entry in entries}
    # The tag is the last record of five steps: later ones are recorded again. The latest tag, not the highest: an
    # attempt that went back may have been killed before it reached the same step.
    tags = [int(entry.content["values"]["step"]) for entry in entries if entry.kind == "tags"]
    done = tags[-1] if tags else 0
    if "params" not in kinds:
        recorder.params({"lr": 0.1, "seed": 3})
    if "dataset" not in kinds:
        recorder.dataset(DatasetInput("set", "d" * 64, "shapes", {"images": 5}))
    for step in range(max(0, done - back) + 1, steps + 1):
        recorder.metrics({"train/loss": 1 / step}, step)
        if step % 5 == 0:
            recorder.metrics({"val/loss": 2 / step, "val/accuracy": 1 - 1 / step}, step)
            recorder.metrics({"train/images_per_second": time.perf_counter()}, step)
            (folder / "state.bin").unlink(missing_ok=True)
            (folder / "state.bin").write_bytes(bytes([step % 256]) * 3000)
            recorder.artifact(folder / "state.bin", "checkpoints/state.bin")
            recorder.tags({"step": step})
        time.sleep(0.002)
    (folder / "done.txt").write_text("complete")
    recorder.artifact(folder / "done.txt", "files/done.txt")


def _without_memory() -> None:
    """Sends rows again that the server has."""
    from cnn_jobs.tracking.client import TrackingClient

    TrackingClient.history = lambda self, run_id, key: []  # type: ignore[method-assign]
    import cnn_jobs.tracking.delivery as delivery

    delivery.CursorFile.load = lambda self, uri: delivery.Cursor()  # type: ignore[method-assign]


def _without_search() -> None:
    """Creates a run without looking for an existing one."""
    from cnn_jobs.tracking import ownership

    real, calls = ownership.runs_of_key, [0]

    def blind(remote: Any, header: Any) -> Any:
        calls[0] += 1
        return [] if calls[0] == 1 else real(remote, header)[-1:]

    ownership.runs_of_key = blind  # type: ignore[assignment]
