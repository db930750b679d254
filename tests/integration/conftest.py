"""A laboratory for runs that are killed: one MLflow server for a module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.local_server.server import start_server, stop_server
from tests.helpers.survival import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    write_prepared(tiny_dataset, folder / "small.npz", compressed=False)
    server = start_server(folder / "server")
    try:
        yield Lab(server.url, folder / "small.npz", folder)
    finally:
        stop_server(folder / "server")
        # The runs of a module are gigabytes where the network is ResNet18.
        shutil.rmtree(folder)
