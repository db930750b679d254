"""bfloat16 on a CPU; on a CUDA device: test_cuda.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cnn_jobs.training.loop import LoopResult, train
from tests.helpers.training import RECIPE, Experiment


def test_bfloat16_computes_in_bfloat16_and_ends_near_single_precision(experiment: Experiment) -> None:
    plain = replace(RECIPE, augmentation="none")
    states = {}
    for precision in ("fp32", "bf16"):
        recipe = replace(plain, precision=precision)
        states[precision] = experiment.state(recipe)
        assert train(states[precision], experiment.data(recipe), recipe) is LoopResult.COMPLETE
    single, half = states["fp32"].train_losses, states["bf16"].train_losses
    assert single != half, "bf16 changed nothing: it was not used"
    # bfloat16 keeps 8 bits of a number: the first loss, before any step, differs by rounding alone.
    assert half[0] == pytest.approx(single[0], rel=0.02)
    assert {tensor.dtype for tensor in states["bf16"].model.parameters()} == {torch.float32}
