"""Tasks 4b and 4c, from arguments to pictures, tables and their MLflow run."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from cnn_jobs.errors import UserError
from cnn_jobs.interpret import plots
from cnn_jobs.interpret.measurements import ChannelFacts, FilterFacts, measure_channel, measure_filter
from cnn_jobs.interpret.network import InspectedNetwork, network_of_run, pretrained_resnet18
from cnn_jobs.interpret.picture import Picture, draw_picture, open_picture
from cnn_jobs.models.weights import open_weights
from cnn_jobs.system.files import copy_files, write_text
from cnn_jobs.tasks import Interpretation
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.document_run import log_documents

Facts = Sequence[FilterFacts | ChannelFacts]


@dataclass(frozen=True, kw_only=True)
class InterpretRequest:
    """What to show of which network; ``run``: the id of a training run, "" for ResNet18 with ``weights``.

    ``filters``: indices of filters or channels; empty: the task's own, or the first ones of a smaller layer.
    """

    task: Interpretation
    image: Path | None
    weights: str
    run: str
    filters: tuple[int, ...]
    layer: str
    out: Path
    tracking_uri: str
    experiment: str
    state_dir: Path
    log: bool


@dataclass(frozen=True)
class InterpretResult:
    """``note``: a caveat about the network, "" for none; ``where``: the MLflow run, "" if it was not logged."""

    title: str
    facts: Facts
    note: str
    files: Sequence[Path]
    where: str


def interpret(request: InterpretRequest) -> InterpretResult:
    """Writes pictures and tables to ``request.out`` and, if requested, logs them to an MLflow run.

    Raises ``UserError``, ``DataError`` or ``WeightsError`` (exit 2) for input that can never work.
    """
    picture = open_picture(request.image) if request.image else draw_picture()
    if request.run:
        network = network_of_run(TrackingClient(request.tracking_uri), request.run)
    else:
        network = pretrained_resnet18(open_weights(request.weights))
    is_task4b = request.task.name == "task4b"
    layer = request.layer or (network.first if is_task4b else network.last)
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as name:
        folder = Path(name)
        show = _show_filters if is_task4b else _show_channels
        title, facts = show(request, picture, network, layer, folder)
        rows = [list(facts[0].cells()), *(list(each.cells().values()) for each in facts)]
        note = f"{network.note}\n\n" if network.note else ""
        write_text(folder / "measurements.csv", _csv(rows))
        write_text(folder / "measurements.md", f"# {title}\n\n{note}{_markdown(rows)}")
        files = copy_files(folder, request.out)
        where = _log(request, network, picture, layer, facts, folder) if request.log else ""
    return InterpretResult(title, facts, network.note, files, where)


def _show_filters(
    request: InterpretRequest, picture: Picture, network: InspectedNetwork, layer: str, folder: Path
) -> tuple[str, Facts]:
    module = network.layer(layer)
    if not isinstance(module, nn.Conv2d):
        raise UserError(f"--layer is '{layer}', but task4b shows filters: name a convolution")
    activation, _ = network.output_of(layer, network.input_of(picture.pixels))
    channels = _choose(request, layer, len(activation))
    weights = module.weight.detach().double().numpy()
    facts = [measure_filter(each, weights[each], activation[each], picture.regions) for each in channels]
    title = f"{network.name}: filters of {layer}"
    plots.plot_filters(picture, title, weights[channels], activation[channels], facts, folder / "filters.png")
    return title, facts


def _show_channels(
    request: InterpretRequest, picture: Picture, network: InspectedNetwork, layer: str, folder: Path
) -> tuple[str, Facts]:
    images = network.input_of(picture.pixels)
    output, probabilities = network.output_of(layer, images)
    channels = _choose(request, layer, len(output))
    activations = np.maximum(output[channels], 0)  # the input of the next layer: a convolution is followed by a ReLU
    facts = [measure_channel(index, plane, picture) for index, plane in zip(channels, activations, strict=True)]
    predicted = int(probabilities.argmax())
    class_name = network.classes[predicted] if network.classes else f"class {predicted}"
    answer = f"{class_name} ({probabilities[predicted]:.0%} sure)"
    cam = network.grad_cam(layer, images, predicted)
    title = f"{network.name}: activations of {layer}"
    plots.plot_channels(picture, title, activations, facts, answer, cam, folder / "channels.png")
    return title, facts


def _choose(request: InterpretRequest, layer: str, count: int) -> list[int]:
    """Indices of the channels to show, of ``count``."""
    own = request.task.channels
    if not request.filters:
        return list(own) if max(own) < count else list(range(min(len(own), count)))
    beyond = [each for each in request.filters if each >= count]
    if beyond:
        raise UserError(f"--filters names {beyond[0]}, but {layer} has {count}: name some of 0 to {count - 1}")
    return list(request.filters)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def _log(
    request: InterpretRequest, network: InspectedNetwork, picture: Picture, layer: str, facts: Facts, folder: Path
) -> str:
    params = {
        "task": request.task.name,
        "network": network.name,
        "weights": "" if request.run else request.weights,
        "run_id": request.run,
        "image": picture.name,
        "layer": layer,
        "filters": ",".join(str(each.index) for each in facts),
    }
    note = f"**{request.task.name}** - {request.task.title}\n\n{network.name}, {layer}. {network.note}".strip()
    return log_documents(
        request.task.name,
        request.task.name,
        lambda files: copy_files(folder, files),
        tracking_uri=request.tracking_uri,
        experiment=request.experiment,
        state_dir=request.state_dir,
        tags={names.NOTE: note},
        params=params,
    )
