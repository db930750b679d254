"""``python -m benchmarks.transfer``: the whole of task4a with cached features, without, and the usual way.

Measures on a subset of real images (``--data``), writes benchmarks/transfer.json and the table in docs/transfer.md;
``--render`` only writes the table again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.figures import Summary
from benchmarks.render import conditions_line, into_page, table
from cnn_jobs.system.process import keep_freed_memory, limit_spinning

ROOT = Path(__file__).resolve().parents[1]
PAGE, JSON_FILE = ROOT / "docs/transfer.md", ROOT / "benchmarks/transfer.json"
LEAST_OVER_UNCACHED, LEAST_OVER_USUAL = 2.0, 2.5
NAMES = {
    "cached": "features kept in memory, the pass included",
    "uncached": "backbone computed at each step (`--trunk-cache off`)",
    "usual": "the usual way: PIL, DataLoader, whole network",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--data", default="cifar10", help="data set, as for 'cnn-jobs train'")
    parser.add_argument("--train", type=int, default=640, help="training images, a tenth of them for validation")
    parser.add_argument("--test", type=int, default=128, help="test images")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page from the raw figures")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Seconds of each contender in each round, and the size of the features."""
    from benchmarks.conditions import conditions
    from benchmarks.usual_transfer import UsualTransfer
    from cnn_jobs.data.sources import open_dataset
    from cnn_jobs.tasks import get_task
    from cnn_jobs.training.device import available_threads, configure_arithmetic
    from cnn_jobs.training.feature_store import FeatureKey

    threads = available_threads()
    task = get_task("task4a")
    recipe = replace(task.recipe, early_stop_count=0, weights="none")
    dataset = _subset(open_dataset(options.data), options.train, options.test)
    ours = Ours(task, recipe, dataset)
    usual = UsualTransfer(task, recipe, dataset)
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "cached": lambda: ours.run(kept=True),
        "uncached": lambda: ours.run(kept=False),
        "usual": usual.run,
    }
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(options.repeats):
        order = list(contenders)[number % 3 :] + list(contenders)[: number % 3]
        for name in order:
            configure_arithmetic(threads)
            started = time.perf_counter()
            parts = contenders[name]()
            seconds[name].append({"total": time.perf_counter() - started, **parts})
            print(f"  round {number + 1} of {options.repeats}: {name} {seconds[name][-1]['total']:.1f} s", flush=True)
    sizes = {
        precision: FeatureKey({}, 1000, (256, 14, 14), dtype, 50).total_bytes for precision, dtype in ours.types.items()
    }
    return {
        "conditions": conditions(arguments, threads, program="benchmarks.transfer"),
        "data": {"name": dataset.name, "train": options.train, "test": options.test},
        "recipe": recipe.as_dict(),
        "seconds": seconds,
        "losses": ours.losses,
        "accuracies": ours.accuracies,
        "bytes_per_1000_images": sizes,
    }


class Ours:
    """``train`` and the final figures as ``cnn-jobs train task4a`` makes them, without tracking."""

    def __init__(self, task: Any, recipe: Any, dataset: Any) -> None:
        from cnn_jobs.training.feature_cache import FEATURE_TYPES

        self.types = FEATURE_TYPES
        self.losses: dict[str, list[float]] = {}
        self.accuracies: dict[str, dict[str, float]] = {}
        self._task, self._recipe, self._dataset = task, recipe, dataset

    def run(self, *, kept: bool) -> dict[str, float]:
        """Trains once; returns the seconds of the pass over all images."""
        from cnn_jobs.data.batches import place_on_device
        from cnn_jobs.runs import artifacts
        from cnn_jobs.training.device import select_device
        from cnn_jobs.training.feature_cache import CHUNK, fill, with_features
        from cnn_jobs.training.feature_store import FeatureKey, MemoryFeatures
        from cnn_jobs.training.loop import DeviceTime, train
        from cnn_jobs.training.state import new_state

        task, recipe, placement = self._task, self._recipe, select_device("cpu")
        data = place_on_device(self._dataset, recipe, task.transform, placement.device, placement.memory_format)
        state = new_state(task.network, recipe, (3, 32, 32), len(self._dataset.classes), placement)
        assert state.backbone
        store, started = None, time.perf_counter()
        if kept:
            count = len(data.train.images) + len(data.test.images)
            key = FeatureKey({}, count, state.backbone.feature_shape, self.types[recipe.precision], CHUNK["cpu"])
            store = MemoryFeatures(key, placement.device)
            fill(store, data, state.backbone, recipe.precision)
        passed = time.perf_counter() - started
        features = with_features(data, state.backbone, recipe.precision, store)
        train(state, features, recipe)
        metrics = artifacts.final_metrics(state, artifacts.final_evaluations(state, features, recipe, DeviceTime()))
        name = "cached" if kept else "uncached"
        self.losses[name] = state.train_losses
        self.accuracies[name] = {key: value for key, value in metrics.items() if key.endswith("_accuracy")}
        return {"pass": passed}


def _subset(dataset: Any, train: int, test: int) -> Any:
    """The first images in a fixed random order."""
    import torch

    from cnn_jobs.data.batches import generator_for
    from cnn_jobs.data.dataset import Dataset

    def part(images: torch.Tensor, labels: torch.Tensor, count: int) -> tuple[Any, Any]:
        chosen = torch.randperm(len(images), generator=generator_for("subset", 0))[:count]
        return images[chosen].numpy(), labels[chosen].numpy()

    return Dataset.from_arrays(
        name=dataset.name,
        uri=dataset.uri,
        classes=dataset.classes,
        train=part(dataset.train_images, dataset.train_labels, train),
        test=part(dataset.test_images, dataset.test_labels, test),
    )


def ratios(results: dict[str, Any], name: str) -> list[float]:
    """How many times as long as the cached features ``name`` took, by round."""
    pairs = zip(results["seconds"][name], results["seconds"]["cached"], strict=True)
    return [other["total"] / ours["total"] for other, ours in pairs]


def largest_difference(results: dict[str, Any]) -> float:
    """The largest relative difference between the losses with and without the cache."""
    pairs = zip(results["losses"]["cached"], results["losses"]["uncached"], strict=True)
    return max(abs(one - other) / abs(other) for one, other in pairs)


def render(results: dict[str, Any]) -> str:
    """The measured part of the page."""
    data, recipe = results["data"], results["recipe"]
    rows = []
    for name, text in NAMES.items():
        total = Summary.of([each["total"] for each in results["seconds"][name]])
        factor = Summary.of(ratios(results, name))
        spread = f"{total.least:.1f} to {total.most:.1f}"
        rows.append([text, f"{total.median:.1f}", spread, str(total.n), f"{factor.median:.2f}"])
    passed = Summary.of([each["pass"] for each in results["seconds"]["cached"]])
    images = data["train"] + data["test"]
    targets = [
        ["faster than without the cache, at least 2 times", "uncached", LEAST_OVER_UNCACHED],
        ["faster than the usual way, at least 2.5 times", "usual", LEAST_OVER_USUAL],
    ]
    met = []
    for text, name, least in targets:
        factor = Summary.of(ratios(results, str(name))).median
        met.append([str(text), f"{factor:.2f} times", "yes" if factor >= float(least) else "**no**"])
    return "\n\n".join(
        [
            conditions_line(results["conditions"]),
            f"{data['train']} training images of `{data['name']}` (a tenth for validation) and {data['test']} test "
            f"images; {recipe['epochs']} epochs, {recipe['validations_per_epoch']} validations each, final figures of "
            f"the best and the last model; batches of {recipe['batch_size']}, {recipe['precision']}, no early stop.",
            table(["the whole task", "seconds, median", "least to most", "n", "times as long"], rows),
            table(["target", "measured (median)", "met"], met),
            f"The pass over all images takes {passed.median:.1f} s, {1000 * passed.median / images:.1f} ms an image.",
            _agreement(results),
            _sizes(results["bytes_per_1000_images"]),
        ]
    )


def _agreement(results: dict[str, Any]) -> str:
    difference, steps = largest_difference(results), len(results["losses"]["cached"])
    losses = f"differ by at most {difference:.1e} (relative)" if difference else "are the same in every bit"
    same = results["accuracies"]["cached"] == results["accuracies"]["uncached"]
    return (
        f"The losses of all {steps} steps with and without the cache {losses}; the accuracies of both models on all "
        f"three parts are {'the same' if same else '**not the same**'}."
    )


def _sizes(sizes: dict[str, int]) -> str:
    return (
        f"1,000 images need {sizes['fp32'] / 1e6:.0f} MB of memory or disk in fp32 and {sizes['bf16'] / 1e6:.0f} MB in "
        f"bf16; all 60,000 of CIFAR-10 {60 * sizes['fp32'] / 1e9:.1f} GB and {60 * sizes['bf16'] / 1e9:.1f} GB."
    )


def main(arguments: list[str]) -> None:
    """Measures, writes, prints."""
    options = parse(arguments)
    limit_spinning()
    keep_freed_memory()
    from cnn_jobs.system.files import write_text

    if not options.render:
        write_text(JSON_FILE, json.dumps(measure(options, arguments), indent=1) + "\n")
    rendered = render(json.loads(JSON_FILE.read_text(encoding="utf-8")))
    print(rendered)
    write_text(PAGE, into_page(PAGE.read_text(encoding="utf-8"), rendered))


if __name__ == "__main__":
    main(sys.argv[1:])
