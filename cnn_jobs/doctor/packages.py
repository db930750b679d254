"""The packages that checks need, imported before the checks begin."""

from __future__ import annotations


def import_all() -> None:
    """One after another: of several threads that import the same packages, one may meet a half-made one."""
    for load in (_import_torch, _import_mlflow, _import_boto):
        try:
            load()
        except Exception:  # said by the checks that need it
            continue


def _import_torch() -> None:
    import torchvision.datasets  # noqa: F401

    import cnn_jobs.data.sources
    import cnn_jobs.models.weights
    import cnn_jobs.training.device  # noqa: F401


def _import_mlflow() -> None:
    from cnn_jobs.tracking import probe

    probe.prepare()


def _import_boto() -> None:
    import boto3  # noqa: F401
