"""The benchmarks compare equal work, and their pages are rendered from the raw figures. Times are not tested."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda, cuda_page, figures, render, run, transfer
from benchmarks.networks import assert_same_function, usual_network
from benchmarks.setting import Setting, random_dataset
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]

RESULTS: dict[str, Any] = {
    "conditions": {
        "date": "2026-01-02", "command": "python -m benchmarks.run --repeats 3", "cpu": "A CPU", "instructions": "AVX2",
        "cores": 4, "threads": 3, "memory_bytes": 8e9, "platform": "Linux", "python": "3.11.7",
        "packages": {"torch": "2.14.1"}, "commit": "0123456789ab", "dirty": True, "gomp_spincount": "10000",
        "load_average": 0.25,
    },
    "speed": {
        "task2": {
            "batch_size": 64, "steps": 40, "lightning_workers": 2,
            "images_per_second": {
                "ours": [960.0, 970.0, 475.0], "ceiling": [1000.0, 1000.0, 500.0],
                "usual_0": [400.0, 500.0, 200.0], "usual_2": [600.0, 400.0, 150.0],
                "lightning": [300.0, 250.0, 250.0],
            },
        }
    },
    "ablations": {
        "task2": {
            "batch_size": 64, "steps": 40,
            "images_per_second": {
                "shipped": [1000.0, 500.0], "relu_before_pool": [800.0, 450.0], "contiguous": [700.0, 350.0],
                "plain_optimizer": [900.0, 500.0], "all_undone": [600.0, 300.0], "bf16": [2000.0, 1000.0],
            },
        }
    },
    "wait_policy": {
        "task2": {
            "batch_size": 64, "steps": 10,
            "images_per_second": {
                "shipped_alone": [1000.0], "default_alone": [1010.0], "passive_alone": [900.0],
                "shipped_beside": [400.0], "default_beside": [90.0], "passive_beside": [410.0],
            },
        }
    },
    "startup": {"imports": [4.0, 5.0], "first_step": [8.8, 10.5]},
    "memory": {
        "data_bytes": 180e6, "small_data_bytes": 10e6,
        "peak_bytes": {"imports": [500e6], "small": [900e6], "full": [1104e6]},
    },
}  # fmt: skip


@pytest.fixture
def dataset() -> Dataset:
    return random_dataset(400, 40)


@pytest.fixture
def _arithmetic() -> Iterator[None]:
    """Restores the settings of the process that the contenders change."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def cells(rendered: str, first: str) -> list[str]:
    """The other cells of the only table row that begins with ``first``."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \| (.*) \|$", rendered, flags=re.MULTILINE)
    return row.split(" | ")


def test_ratios_are_taken_within_a_round() -> None:
    rates = RESULTS["speed"]["task2"]["images_per_second"]
    assert figures.of_ceiling(rates) == pytest.approx([0.96, 0.97, 0.95])
    assert figures.over_others(rates) == pytest.approx([1.6, 1.94, 1.9])  # each round has another fastest


def test_unequal_numbers_of_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        figures.ratios({"ours": [1.0, 2.0], "ceiling": [1.0]}, "ours", ["ceiling"])


def test_targets_follow_from_the_figures() -> None:
    assert [(target.measured, target.met) for target in figures.targets(RESULTS)] == [
        ("96.0%", True),
        ("1.90 times", True),
        ("2.15 times", False),
    ]
    slower = copy.deepcopy(RESULTS)
    slower["speed"]["task2"]["images_per_second"]["ours"] = [900.0, 900.0, 100.0]
    assert [target.met for target in figures.targets(slower)] == [False, False, False]
    assert figures.targets({}) == []


def test_rendering_has_every_figure() -> None:
    rendered = render.render(RESULTS)
    assert cells(rendered, "(a) our loop, tracking on") == ["960", "475 to 970", "3"]
    assert cells(rendered, "(d) Lightning, 2 workers") == ["250", "250 to 300", "3"]
    assert cells(rendered, "(a) / (b)") == ["0.960", "0.950 to 0.970", "3"]
    assert cells(rendered, "ReLU before max pooling") == ["625", "450 to 800", "2", "85%"]
    assert cells(rendered, "OpenMP's default, beside a busy process") == ["90", "90 to 90", "1", "9%"]
    assert cells(rendered, "first step over imports, within a round") == ["2.15", "2.10 to 2.20", "2"]
    assert cells(rendered, "process start to first step, over the imports, at most 2 times") == ["2.15 times", "**no**"]
    # (1104 - 500) / 180 and (1104 - 900) / (180 - 10)
    assert "over the imports: 3.36 times the data" in rendered
    assert "add to the peak: 1.20 times" in rendered
    for fact in ("A CPU", "3 threads", "torch 2.14.1", "--repeats 3", "0123456789ab with uncommitted changes", "0.25"):
        assert fact in rendered


def test_parts_without_measurements_are_omitted() -> None:
    rendered = render.render({"conditions": RESULTS["conditions"], "memory": RESULTS["memory"]})
    assert re.findall(r"^## (.*)$", rendered, flags=re.MULTILINE) == ["Memory"]


def test_rendering_replaces_the_part_between_the_markers() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    once = render.into_page(page, "FIGURES")
    assert render.into_page(once, "second") == once.replace("FIGURES", "second")
    assert once.split(render.BEGIN)[0] == page.split(render.BEGIN)[0]
    with pytest.raises(ValueError, match="must hold the lines"):
        render.into_page("no marks", "first")


def test_page_is_rendered_from_its_raw_figures() -> None:
    page = run.PAGE.read_text()
    assert render.into_page(page, render.render(json.loads(run.JSON_FILE.read_text()))) == page


def test_page_is_rendered_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # main would set it for the whole process
    figures_file, page = tmp_path / "results.json", tmp_path / "page.md"
    figures_file.write_text(json.dumps(RESULTS))
    page.write_text(f"before\n\n{render.BEGIN}\n{render.END}\nafter\n")
    run.main(["--render", "--json", str(figures_file), "--out", str(page)])
    assert page.read_text() == f"before\n\n{render.BEGIN}\n\n{render.render(RESULTS)}\n\n{render.END}\nafter\n"
    assert render.render(RESULTS) in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--quick"], ["--parts", "speed,memory"]])
def test_trials_and_parts_write_no_page(arguments: list[str]) -> None:
    options = run.parse(arguments)
    assert (options.out, options.json) == (None, None)
    assert (run.parse([]).out, run.parse([]).json) == (run.PAGE, run.JSON_FILE)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("task", [name for name in TASKS if name != "task4a"])
def test_usual_network_computes_the_same(task: str, dataset: Dataset) -> None:
    setting = Setting.of(task, dataset, 1)
    ours, pixels = setting.new_state().model, setting.constant_batch()[0][:8]
    usual = usual_network(setting.task.network, ours)
    assert_same_function(ours, usual, pixels)
    kinds = [type(module).__name__ for module in usual]
    assert kinds.index("ReLU") < next(i for i, kind in enumerate(kinds) if "Pool" in kind)
    with torch.no_grad():
        usual.conv2.bias[0] += 1.0
    with pytest.raises(AssertionError, match="differ"):
        assert_same_function(ours, usual, pixels)


def test_contenders_train_on_the_same_images(dataset: Dataset) -> None:
    from benchmarks.usual import PictureDataset

    setting = Setting.of("task2", dataset, 1)
    pictures = PictureDataset(setting)
    images, labels = setting.data.train.batch(torch.arange(len(pictures)))
    assert [label for _, label in pictures] == labels.tolist()
    torch.testing.assert_close(torch.stack([image for image, _ in pictures]), images, check_stride=False)


def test_page_of_transfer_is_rendered_from_its_raw_figures() -> None:
    results = json.loads(transfer.JSON_FILE.read_text())
    page = transfer.PAGE.read_text()
    assert render.into_page(page, transfer.render(results)) == page
    assert transfer.ratios(results, "cached") == [1.0] * len(results["seconds"]["cached"])


@pytest.mark.slow
@pytest.mark.usefixtures("_arithmetic")
def test_every_way_of_transfer_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(random_dataset(80, 20), tmp_path / "noise.npz", compressed=False)
    arguments = ["--data", str(tmp_path / "noise.npz"), "--train", "80", "--test", "10", "--repeats", "1"]
    task = TASKS["task4a"]
    quick = replace(task, recipe=replace(task.recipe, epochs=1), network=ResNet18(side=32))
    monkeypatch.setitem(TASKS, "task4a", quick)
    results = transfer.measure(transfer.parse(arguments), arguments)
    assert {name: len(rounds) for name, rounds in results["seconds"].items()} == dict.fromkeys(transfer.NAMES, 1)
    assert len(results["losses"]["cached"]) == 2
    assert transfer.largest_difference(results) < 1e-4
    assert "| the whole task |" in transfer.render(results)


@pytest.mark.slow
@pytest.mark.usefixtures("_arithmetic", "mlflow_uri")
@pytest.mark.parametrize("task", ["task2", "task3e"])
def test_every_contender_trains(task: str, dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from benchmarks import speed

    setting = Setting.of(task, dataset, 1)
    measured = speed.measure_speed(setting, tmp_path, repeats=1, steps=2)
    ablated = speed.measure_ablations(setting, repeats=1, steps=2)
    for part, names in ((measured, render.CONTENDERS), (ablated, render.ABLATIONS)):
        assert set(part["images_per_second"]) == set(names)
        assert all(rate > 0 for rates in part["images_per_second"].values() for rate in rates)
    results = {"conditions": RESULTS["conditions"], "speed": {task: measured}, "ablations": {task: ablated}}
    rendered = render.render(results)
    assert all(name in rendered for name in (*render.CONTENDERS.values(), *render.ABLATIONS.values()))


def test_page_on_cuda_is_rendered_from_its_raw_figures() -> None:
    results = json.loads(cuda_page.JSON_FILE.read_text())
    page = cuda_page.PAGE.read_text()
    assert render.into_page(page, cuda_page.render(results)) == page
    # Figures in the text above the tables.
    measured = results["speed"]["images_per_second"]["task2"]
    rates = {name: figures.Summary.of(values).median for name, values in measured.items()}
    per_step = {name: f"{1000 * 64 / rate:.1f} ms" for name, rate in rates.items()}
    assert f"{per_step['ours_no_graph']} a" in page
    assert f"{per_step['ours']} when they are started as one" in page


@pytest.mark.slow
@pytest.mark.usefixtures("_arithmetic", "mlflow_uri")
# A machine with a GPU has more CPUs.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes:UserWarning")
def test_benchmark_on_cuda_saves_its_results_after_each_task(tmp_path: Path) -> None:
    """On a CPU, with a few steps."""
    out = tmp_path / "cuda.json"
    options = ["--device", "cpu", "--images", "700", "--repeats", "1", "--steps", "0", "--out", str(out)]
    parsed = cuda.parse(["speed", *options])
    seen = [json.loads(json.dumps(content)) for content in cuda.measure_speed(parsed)]
    assert [list(content["images_per_second"]) for content in seen] == [["task2"], ["task2", "task3e"]]
    for rates in seen[1]["images_per_second"].values():
        assert rates.keys() == cuda.STEPS.keys() == cuda_page.NAMES.keys()
        assert all(len(values) == 1 and values[0] > 0 for values in rates.values())
    assert set(seen[1]["steps"].values()) == {5}
