"""Our loop against its ceiling, the usual loop and Lightning; and the gain of each of our choices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Ceiling, Contender, OurLoop
from benchmarks.lightning_loop import LightningLoop
from benchmarks.networks import assert_same_function, usual_network
from benchmarks.rounds import CALIBRATION_STEPS, STRETCH_S, UNTIMED_STEPS, calibrated_steps, closing_all, measure_rounds
from benchmarks.setting import Setting
from benchmarks.usual import PictureDataset, UsualLoop
from cnn_jobs.models.cpu_kernels.winograd import use_fast_convolutions
from cnn_jobs.training.device import Placement
from cnn_jobs.training.state import build_optimizer

WORKERS = (0, 2)


def measure_speed(setting: Setting, folder: Path, *, repeats: int, steps: int) -> dict[str, Any]:
    """All contenders on one task; with ``steps`` 0, as many a stretch as our loop does in ``STRETCH_S`` seconds.

    Raises ``AssertionError`` if the usual network does not compute the same function as ours.
    """
    pictures = PictureDataset(setting)
    ours = OurLoop(setting, folder)
    contenders: dict[str, Contender] = {"ours": ours, "ceiling": Ceiling(setting)}
    for workers in WORKERS:
        contenders[f"usual_{workers}"] = UsualLoop(setting, pictures, workers)
    contenders["lightning"], workers = _better_lightning(setting, pictures)
    with closing_all(contenders):
        pixels, _ = setting.constant_batch()
        assert_same_function(ours.model, usual_network(setting.task.network, ours.model), pixels)
        steps = steps or calibrated_steps(ours)
        return {**_rounds(setting, contenders, repeats, steps), "lightning_workers": workers}


def _better_lightning(setting: Setting, pictures: PictureDataset) -> tuple[LightningLoop, int]:
    """Lightning with the faster number of workers, by the best of two short tries each; and that number."""
    loops = {workers: LightningLoop(setting, pictures, workers) for workers in WORKERS}
    tries = [(loop.run(UNTIMED_STEPS, CALIBRATION_STEPS), workers) for _ in range(2) for workers, loop in loops.items()]
    _, best = min(tries)
    for workers, loop in loops.items():
        if workers != best:
            loop.close()
    return loops[best], best


def measure_ablations(setting: Setting, *, repeats: int, steps: int) -> dict[str, Any]:
    """The ceiling as shipped, and with one choice of ours undone (or bfloat16 added) at a time."""
    contenders = _ablations(setting)
    with closing_all(contenders):
        steps = steps or calibrated_steps(contenders["shipped"], STRETCH_S / 3)
        return _rounds(setting, contenders, repeats, steps)


def _ablations(setting: Setting) -> Mapping[str, Contender]:
    def usual_model(memory_format: torch.memory_format, *, fast_convolutions: bool) -> torch.nn.Module:
        network = usual_network(setting.task.network, setting.new_state().model)
        if fast_convolutions:
            use_fast_convolutions(network)
        return network.to(memory_format=memory_format)

    def optimized(model: torch.nn.Module, memory_format: torch.memory_format) -> Ceiling:
        optimizer = build_optimizer(model, setting.recipe)
        return Ceiling(setting, model=model, optimizer=optimizer, memory_format=memory_format)

    contiguous, last = torch.contiguous_format, torch.channels_last
    state = setting.new_state()
    plain = setting.usual_optimizer(state.model.parameters())
    return {
        "shipped": Ceiling(setting),
        "relu_before_pool": optimized(usual_model(last, fast_convolutions=True), last),
        "plain_convolution": optimized(setting.new_state(fast_convolutions=False).model, last),
        "contiguous": optimized(setting.new_state(Placement(setting.placement.device, contiguous)).model, contiguous),
        "plain_optimizer": Ceiling(setting, model=state.model, optimizer=plain),
        "all_undone": Ceiling(
            setting,
            model=(undone := usual_model(contiguous, fast_convolutions=False)),
            optimizer=setting.usual_optimizer(undone.parameters()),
            memory_format=contiguous,
        ),
        "bf16": Ceiling(setting, precision="bf16"),
    }


def _rounds(setting: Setting, contenders: Mapping[str, Contender], repeats: int, steps: int) -> dict[str, Any]:
    batch_size = setting.recipe.batch_size
    rates = measure_rounds(contenders, repeats=repeats, steps=steps, batch_size=batch_size)
    return {"batch_size": batch_size, "steps": steps, "images_per_second": rates}
