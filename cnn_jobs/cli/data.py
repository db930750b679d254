"""``cnn-jobs data``: prepares, stages and verifies data sets and pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cnn_jobs.cli.options import option

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
    from cnn_jobs.data.sources import prepare, verify

    _show(verify(prepare(src, dest)))  # read back, to show what the file contains


@data.command("stage")
@option("cifar10", is_flag=True, default=True, help="CIFAR-10, for --data cifar10.")
@option(
    "cifar10_from",
    default="",
    show_default="its authors' site",
    help="Its source: http address of a mirror of the archive, s3://..., or a file that 'data prepare' made.",
)
@option("imagenet", is_flag=True, default=True, help="ImageNet's weights of ResNet18, for --weights imagenet.")
@option(
    "imagenet_from",
    default="",
    show_default="torchvision's site",
    help="Their source: http address of a mirror, s3://... or a file.",
)
def stage_command(cifar10: bool, cifar10_from: str, imagenet: bool, imagenet_from: str) -> None:
    """Put CIFAR-10 and ImageNet's weights where training looks for them, each checked by its digest.

    The data set goes to CNN_JOBS_CACHE_DIR, the weights to TORCH_HOME: on Kubernetes a volume that
    training pods read. Files that are there already are checked and kept.
    """
    from cnn_jobs.data.sources import stage_cifar10
    from cnn_jobs.models.weights import stage_imagenet

    wanted = [(stage_cifar10, cifar10_from)] * cifar10 + [(stage_imagenet, imagenet_from)] * imagenet
    for stage, source in wanted:
        staged = stage(source)
        click.echo(f"{staged.path}  sha256 {staged.digest[:12]}  {'staged' if staged.fresh else 'unchanged'}")


@data.command("verify")
@click.argument("uri")
@click.option(
    "--digest",
    envvar="CNN_JOBS_DIGEST",
    show_envvar=True,
    metavar="HEX",
    help="Fail if the data set's SHA-256 does not begin with these digits, 12 at least.",
)
def verify_command(uri: str, digest: str | None) -> None:
    """Open the data set URI, check it and print what it contains."""
    from cnn_jobs.data.sources import verify

    _show(verify(uri, digest))


def _show(dataset: Dataset) -> None:
    from cnn_jobs.data.dataset import image_size

    megabytes = (dataset.train_images.nbytes + dataset.test_images.nbytes) / 1e6
    lines = {
        "uri": dataset.uri,
        "digest": dataset.digest,
        "classes": f"{len(dataset.classes)} ({', '.join(dataset.classes)})",
        "train": f"{len(dataset.train_images)} images",
        "test": f"{len(dataset.test_images)} images",
        "size": f"{image_size(dataset.train_images)} pixels, {megabytes:.1f} MB in memory",
    }
    if dataset.synthetic:
        lines["note"] = "synthetic: drawn by cnn-jobs, not photographed"
    for name, value in lines.items():
        click.echo(f"{name:<8} {value}")
