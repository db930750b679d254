"""When a run writes its checkpoints, and where they go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cnn_jobs.runs.cost import RunCost
from cnn_jobs.runs.record import machine
from cnn_jobs.runs.setup import Run
from cnn_jobs.tracking import names
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.training.checkpoint import Checkpointer, save_checkpoint
from cnn_jobs.training.feature_cache import FeaturePlan
from cnn_jobs.training.state import TrainState


class RunCheckpointer(Checkpointer):
    """Writes a run's ``last.pt`` and ``best.pt``, and records them for upload."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        recorder: JournalRecorder,
        journal: Journal,
        cost: RunCost,
        plan: FeaturePlan | None = None,
    ) -> None:
        self._run, self._recorder, self._journal, self._cost = run, recorder, journal, cost
        self._folder = run.folder / names.CHECKPOINTS
        self._saved = time.monotonic()
        self.saved_step = 0  # by this attempt
        self.saved_at = 0.0  # in seconds since 1970, 0 for never
        self._identity = {**run.identity(), "recipe": run.recipe.as_dict(), "machine": machine(run, plan)}
        if state.backbone:
            self._identity["frozen"] = names.frozen_checkpoint(state.backbone.digest())

    def due(self) -> bool:
        """Whether the last checkpoint is older than ``--checkpoint-every``."""
        return time.monotonic() - self._saved > self._run.options.checkpoint_every_s

    def save(self, state: TrainState) -> Path:
        """Writes ``last.pt``; the previous one is kept as ``previous.pt``."""
        # After a power loss, the journal must not lack what led to the checkpoint.
        self._recorder.sync()
        own: dict[str, Any] = {"useful": self._cost.useful(), "journal_seq": self._journal.last_seq}
        content = {**state.state_dict(), **self._identity, **own}
        path = save_checkpoint(self._folder / "last.pt", content, keep=self._folder / "previous.pt")
        self._cost.write()
        self._saved, self.saved_at, self.saved_step = time.monotonic(), time.time(), state.step
        return path

    def after_validation(self, state: TrainState) -> None:
        """Writes and uploads ``last.pt``, and ``best.pt`` where this validation was the best."""
        if state.best and state.best.validation.step == state.step:
            self._recorder.artifact(self._save_best(state), names.BEST_CHECKPOINT, passing=True)
        self.save_and_upload(state)

    def save_and_upload(self, state: TrainState) -> Path:
        """Writes ``last.pt`` and uploads it to the slot that does not hold the last validation's."""
        path = self.save(state)
        slots = names.CHECKPOINT_SLOTS
        slot = slots[(len(state.validations) + (not state.is_validated)) % len(slots)]
        self._recorder.artifact(path, slot, passing=True)
        return path

    def upload_final(self, state: TrainState) -> None:
        """Uploads the final state and the best weights under their lasting names."""
        self._recorder.artifact(self._save_best(state), names.BEST_CHECKPOINT)
        self._recorder.artifact(self.save(state), names.LAST_CHECKPOINT)

    def _save_best(self, state: TrainState) -> Path:
        assert state.best
        best, run = state.best, self._run
        content = {"model": best.weights, "step": best.validation.step, "val_loss": best.validation.loss}
        return save_checkpoint(
            self._folder / "best.pt",
            {**content, **self._identity, "classes": list(run.dataset.classes), "image": list(run.image)},
        )
