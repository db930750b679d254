"""``cnn-jobs data``: stage a data set once, and check it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cnn_jobs.data.dataset import Dataset


@click.group("data")
def data() -> None:
    """Stage a data set once, and check it by its digest."""


@data.command("prepare")
@click.argument("src")
@click.argument("dest")
def prepare_command(src: str, dest: str) -> None:
    """Write the data set SRC as one compact file, named by its digest, to DEST.

    SRC is 'cifar10', 'shapes', an ImageFolder directory or .zip, an .npz or s3://bucket/key; DEST a
    directory, a path that ends in .npz, s3://bucket/prefix/ or s3://bucket/key.npz.
    """
    from cnn_jobs.data.prepare import prepare, verify

    written = prepare(src, dest)
    _show(verify(written))  # read back: what is shown is what the file holds


@data.command("verify")
@click.argument("uri")
@click.option(
    "--digest",
    envvar="CNN_JOBS_DIGEST",
    show_envvar=True,
    metavar="HEX",
    help="Fail where the data set's SHA-256 does not begin with these digits, 12 at least.",
)
def verify_command(uri: str, digest: str | None) -> None:
    """Open the data set URI, check it and print what is in it."""
    from cnn_jobs.data.prepare import verify

    _show(verify(uri, digest))


def _show(dataset: Dataset) -> None:
    height, width = dataset.train_images.shape[2:]
    megabytes = (dataset.train_images.nbytes + dataset.test_images.nbytes) / 1e6
    lines = {
        "uri": dataset.uri,
        "digest": dataset.digest,
        "classes": f"{len(dataset.classes)} ({', '.join(dataset.classes)})",
        "train": f"{len(dataset.train_images)} images",
        "test": f"{len(dataset.test_images)} images",
        "size": f"{width}x{height} pixels, {megabytes:.1f} MB in memory",
    }
    if dataset.synthetic:
        lines["note"] = "synthetic: drawn by cnn-jobs, not photographed"
    for name, value in lines.items():
        click.echo(f"{name:<8} {value}")
