"""Tasks 4b and 4c, from arguments to pictures and their MLflow run: the only place that wires their parts together."""

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
from cnn_jobs.interpret import figures
from cnn_jobs.interpret.measurements import ChannelFacts, FilterFacts, measure_channel, measure_filter
from cnn_jobs.interpret.picture import Picture, draw_picture, open_picture
from cnn_jobs.interpret.subject import Subject, grad_cam, look, pretrained_resnet18, trained_by_us
from cnn_jobs.models.weights import open_weights
from cnn_jobs.system.files import copy_files, write_text
from cnn_jobs.tasks import Interpretation
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import RefusalError
from cnn_jobs.tracking.document_run import log_documents
from cnn_jobs.training.checkpoint import load_checkpoint

Rows = list[list[str]]


def filter_rows(facts: Sequence[FilterFacts]) -> Rows:
    """A header, then a row a filter."""
    regions = list(facts[0].responses)
    header = ["filter", "kind", "orientation (degrees)", "coherence", "frequency (cycles/px)", "colour", "colour share"]
    rows = [[*header, "strongest in", *regions]]
    for each in facts:
        orientation = "" if each.orientation_deg is None else f"{each.orientation_deg:.1f}"
        numbers = [f"{each.coherence:.3f}", f"{each.frequency:.4f}", each.colour, f"{each.colour_share:.3f}"]
        responses = [f"{each.responses[name]:.3f}" for name in regions]
        rows.append([str(each.index), each.kind, orientation, *numbers, each.region, *responses])
    return rows


def channel_rows(facts: Sequence[ChannelFacts]) -> Rows:
    """A header, then a row a channel."""
    rows = [["channel", "share zero", "highest", "share above half", "peak (row)", "peak (column)", "strongest in"]]
    for each in facts:
        numbers = (each.sparsity, each.highest, each.area, *each.peak)
        rows.append([str(each.index), *(f"{number:.3f}" for number in numbers), each.region])
    return rows


def as_csv(rows: Rows) -> str:
    """The rows as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def as_markdown(rows: Rows) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


Facts = FilterFacts | ChannelFacts
PICTURES = {"task4b": "filters.png", "task4c": "channels.png"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to show of which network. ``channels`` empty: the task's own, or the first ones of a smaller layer."""

    task: Interpretation
    image: Path | None
    weights: str
    run_id: str
    channels: tuple[int, ...]
    layer: str
    out: Path
    tracking_uri: str
    experiment: str
    state_dir: Path
    log: bool


@dataclass(frozen=True)
class Shown:
    """What came of it: number, words and strongest region of each filter or channel; the note that belongs to it, the
    files, where it is in MLflow."""

    title: str
    summary: Sequence[tuple[str, str, str]]
    note: str
    files: Sequence[Path]
    where: str


def interpret(request: Request) -> Shown:
    """Writes pictures and tables to ``request.out``, and keeps them in an MLflow run.

    Raises ``UserError``, ``DataError`` or ``WeightsError`` (exit 2) for what can never work.
    """
    picture = open_picture(request.image) if request.image else draw_picture()
    if request.run_id:
        subject = subject_of_run(TrackingClient(request.tracking_uri), request.run_id)
    else:
        subject = pretrained_resnet18(open_weights(request.weights))
    layer = request.layer or (subject.first if request.task.name == "task4b" else subject.last)
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as name:
        folder = Path(name)
        show = _filters if request.task.name == "task4b" else _channels
        title, rows, facts = show(request, picture, subject, layer, folder)
        text = f"# {title}\n\n{subject.note + chr(10) * 2 if subject.note else ''}{as_markdown(rows)}"
        write_text(folder / "measurements.csv", as_csv(rows))
        write_text(folder / "measurements.md", text)
        files = copy_files(folder, request.out)
        where = _log(request, subject, picture, layer, facts, folder) if request.log else ""
    summary = [(str(each.index), each.words(), each.region) for each in facts]
    return Shown(title, summary, subject.note, files, where)


def subject_of_run(remote: TrackingClient, run_id: str) -> Subject:
    """The best network of a run of ours: its checkpoints, for the exported model cannot be hooked."""
    try:
        run = remote.get(run_id)
    except RefusalError as refusal:
        raise UserError(f"run {run_id}: {refusal}; 'cnn-jobs runs' lists those there are") from refusal
    there = remote.artifacts(run_id, "checkpoints") if run else []
    if run is None or names.BEST_CHECKPOINT not in there:
        raise UserError(f"run {run_id} has no checkpoints/best.pt; name a run that trained a task to its end")
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as name:
        folder = Path(name)
        best = load_checkpoint(remote.download(run_id, names.BEST_CHECKPOINT, folder))
        frozen = load_checkpoint(remote.download(run_id, best["frozen"], folder)) if "frozen" in best else None
    return trained_by_us(run.name, best, frozen)


def _filters(
    request: Request, picture: Picture, subject: Subject, layer: str, folder: Path
) -> tuple[str, Rows, Sequence[Facts]]:
    module = subject.layer(layer)
    if not isinstance(module, nn.Conv2d):
        raise UserError(f"--layer is '{layer}', but task4b shows filters: name a convolution")
    seen = look(subject, layer, subject.input_of(picture.pixels))
    channels = _choose(request, layer, len(seen.activation))
    weights = module.weight.detach().double().numpy()
    facts = [measure_filter(each, weights[each], seen.activation[each], picture.regions) for each in channels]
    title = f"{subject.name}: filters of {layer}"
    kernels, activations = [weights[each] for each in channels], [seen.activation[each] for each in channels]
    figures.plot_filters(picture, title, kernels, activations, facts, folder / PICTURES["task4b"])
    return title, filter_rows(facts), facts


def _channels(
    request: Request, picture: Picture, subject: Subject, layer: str, folder: Path
) -> tuple[str, Rows, Sequence[Facts]]:
    images = subject.input_of(picture.pixels)
    seen = look(subject, layer, images)
    channels = _choose(request, layer, len(seen.activation))
    # What the next layer gets: a convolution's output has its ReLU behind it.
    activations = [np.maximum(seen.activation[each], 0) for each in channels]
    facts = [measure_channel(index, plane, picture) for index, plane in zip(channels, activations, strict=True)]
    named = subject.classes[seen.predicted] if subject.classes else f"class {seen.predicted}"
    answer = f"{named} ({seen.probability:.0%} sure)"
    cam = grad_cam(subject, layer, images, seen.predicted)
    title = f"{subject.name}: activations of {layer}"
    figures.plot_channels(picture, title, activations, facts, answer, cam, folder / PICTURES["task4c"])
    return title, channel_rows(facts), facts


def _choose(request: Request, layer: str, count: int) -> list[int]:
    own = request.task.channels
    if not request.channels:
        return list(own) if max(own) < count else list(range(min(len(own), count)))
    beyond = [each for each in request.channels if each >= count]
    if beyond:
        raise UserError(f"--filters names {beyond[0]}, but {layer} has {count}: name some of 0 to {count - 1}")
    return list(request.channels)


def _log(request: Request, subject: Subject, picture: Picture, layer: str, facts: Sequence[Facts], folder: Path) -> str:
    params = {
        "task": request.task.name,
        "network": subject.name,
        "weights": "" if request.run_id else request.weights,
        "run_id": request.run_id,
        "image": picture.name,
        "layer": layer,
        "filters": ",".join(str(each.index) for each in facts),
    }
    note = f"**{request.task.name}** - {request.task.title}\n\n{subject.name}, {layer}. {subject.note}".strip()
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
