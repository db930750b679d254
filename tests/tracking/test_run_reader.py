"""Curves of runs, read back from MLflow."""

from __future__ import annotations

from cnn_jobs.tracking.run_reader import Curve, thinned


def test_training_losses_are_means_between_validations() -> None:
    losses = Curve(tuple(range(1, 8)), (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 100.0))
    assert thinned(losses, (2, 6)) == Curve((2, 6), (2.0, 8.0))
    assert thinned(Curve(), (2, 6)) == Curve()
