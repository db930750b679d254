"""The same training by Lightning's Trainer."""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch.nn import functional as F

from benchmarks.networks import usual_network
from benchmarks.setting import Setting
from benchmarks.usual import PictureDataset, fork_allowed, picture_loader


class _Module(lightning.LightningModule):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self._setting = setting
        self.network = usual_network(setting.task.network, setting.new_state().model)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._setting.usual_optimizer(self.parameters())


class _Clock(lightning.Callback):
    """Reads the clock after ``untimed`` steps and after the last one."""

    def __init__(self, setting: Setting, untimed: int, last: int) -> None:
        self._setting, self._untimed, self._last = setting, untimed, last
        self.started = self.ended = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self._untimed:
            self.started = self._setting.now()
        if trainer.global_step == self._last:
            self.ended = self._setting.now()


class LightningLoop:
    """A Trainer without logger, checkpoints, progress bar and validation, the loss logged every step.

    Every stretch is a fresh Trainer on the same module, loader and worker processes; only steady steps are timed.
    """

    def __init__(self, setting: Setting, pictures: PictureDataset, workers: int) -> None:
        self._setting = setting
        self._module = _Module(setting)
        self._loader = picture_loader(setting, pictures, workers)

    def run(self, untimed: int, timed: int) -> float:
        """One ``fit`` over all these steps; at least one must be untimed."""
        if untimed < 1:
            raise ValueError(f"untimed is {untimed}, but must be at least 1")
        self._setting.configure(shipped=False)
        clock = _Clock(self._setting, untimed, untimed + timed)
        with _quietly():
            trainer = lightning.Trainer(
                accelerator="gpu" if self._setting.placement.device.type == "cuda" else "cpu",
                devices=1,
                max_epochs=-1,
                max_steps=untimed + timed,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[clock],
            )
            trainer.fit(self._module, self._loader)
        assert trainer.global_step == untimed + timed, trainer.global_step
        return clock.ended - clock.started

    def close(self) -> None:
        """Stops the worker processes: they end with the loader, to which the module's trainer refers, too."""
        del self._loader, self._module
        gc.collect()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences Lightning's advice to users."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with fork_allowed(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
