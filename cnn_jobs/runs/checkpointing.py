"""When and where a run's checkpoints are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cnn_jobs.runs import record
from cnn_jobs.runs.cost import RunCost
from cnn_jobs.runs.setup import Run
from cnn_jobs.tracking import names
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.training.checkpoint import save_checkpoint
from cnn_jobs.training.feature_cache import FeaturePlan
from cnn_jobs.training.state import TrainState


class CheckpointSaver:
    """Writes ``last.pt`` and ``best.pt`` of a run, and hands them over to be sent."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        recorder: JournalRecorder,
        journal: Journal,
        book: RunCost,
        plan: FeaturePlan | None = None,
    ) -> None:
        self._run, self._recorder, self._journal, self._book = run, recorder, journal, book
        self._folder = run.folder / "checkpoints"
        self._saved = time.monotonic()
        self.saved_step = 0  # by this attempt
        self._identity = {**run.identity(), "recipe": run.recipe.as_dict(), "machine": record.machine(run, plan)}
        if state.frozen:
            self._identity["frozen"] = record.frozen_file(state.frozen)

    def due(self) -> bool:
        """Whether the last checkpoint is older than ``--checkpoint-every``; asked after every step."""
        return time.monotonic() - self._saved > self._run.options.checkpoint_every_s

    def save(self, state: TrainState) -> Path:
        """``last.pt``; the one before stays as ``previous.pt``."""
        # What the checkpoint has behind it must not be missing in the journal after a power loss.
        self._recorder.sync()
        own: dict[str, Any] = {"useful": self._book.useful(), "journal_seq": self._journal.last_seq}
        content = {**state.state_dict(), **self._identity, **own}
        path = save_checkpoint(self._folder / "last.pt", content, keep=self._folder / "previous.pt")
        self._book.write()
        self._saved, self._run.saved_at, self.saved_step = time.monotonic(), time.time(), state.step
        return path

    def after_validation(self, state: TrainState) -> None:
        """``best.pt``, where this validation was the best, and ``last.pt``; both are sent."""
        if state.best and state.best.validation.step == state.step:
            self._recorder.artifact(self._save_best(state), names.BEST_CHECKPOINT, passing=True)
        self.save_and_ship(state)

    def save_and_ship(self, state: TrainState) -> Path:
        """``last.pt``, sent to the slot that does not hold the last validation's."""
        path = self.save(state)
        slot = names.CHECKPOINT_SLOTS[(len(state.validations) + (not state.is_validated)) % len(names.CHECKPOINT_SLOTS)]
        self._recorder.artifact(path, slot, passing=True)
        return path

    def ship_final(self, state: TrainState) -> None:
        """The state at the end, and the best weights, under their lasting names."""
        self._recorder.artifact(self._save_best(state), names.BEST_CHECKPOINT)
        self._recorder.artifact(self.save(state), names.CHECKPOINT_SLOTS[0])

    def _save_best(self, state: TrainState) -> Path:
        assert state.best
        best = state.best
        content = {"model": best.weights, "step": best.validation.step, "val_loss": best.validation.loss}
        return save_checkpoint(
            self._folder / "best.pt",
            {**content, **self._identity, "classes": list(self._run.dataset.classes), "image": list(self._run.image)},
        )
