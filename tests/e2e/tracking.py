"""MLflow in the cluster, read through a port-forward that is restarted when it breaks."""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cnn_jobs.local_server.server import free_port
from tests.e2e.kubectl import Cluster, program

EXPERIMENT = "cnn-jobs"  # of the stack's ConfigMap
ENVIRONMENT = {
    # Through the server, as in pods: this machine may not reach the store either.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
Result = TypeVar("Result")


@dataclass
class Tracking:
    """A client of the server; ``ask`` survives the end of the port-forward, as when its pod is replaced."""

    cluster: Cluster
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address on this machine."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self, seconds: float = 90.0) -> str:
        """Waits until the server answers; returns its address."""
        if not self._answers():
            self.cluster.wait("an answer of MLflow through kubectl port-forward", self._again, seconds)
        return self.url

    def _again(self) -> bool:
        # A port-forward that does not answer has lost its pod and must be restarted, too.
        self.close()
        words = [program("kubectl"), "--namespace", self.cluster.namespace, "port-forward", "service/mlflow"]
        words += [f"{self.port}:5000", "--address=127.0.0.1"]
        with (self.folder / "port-forward.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        time.sleep(2)
        return self._answers()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def close(self) -> None:
        """Ends the port-forward."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def ask(self, question: Callable[[Any], Result], tries: int = 3) -> Result:
        """The result of ``question`` with a client, repeated after a broken connection."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for left in reversed(range(tries)):
            try:
                return question(MlflowClient(self.connect()))
            except MlflowException as error:
                if not left:
                    raise AssertionError(f"MLflow answers: {str(error)[:500]}") from error
                self.close()
        raise AssertionError

    def run(self, key: str) -> Any:
        """The only run of a key, ``None`` if there is none yet."""

        def search(client: Any) -> list[Any]:
            experiment = client.get_experiment_by_name(EXPERIMENT)
            condition = f"tags.`cnn_jobs.run_key` = '{key}'"
            return list(client.search_runs([experiment.experiment_id], condition)) if experiment else []

        found = self.ask(search)
        assert len(found) <= 1, f"{len(found)} runs of key {key}"
        return found[0] if found else None

    def artifacts(self, run: Any, folder: str = "") -> set[str]:
        """Paths of a run's artifacts in a folder."""
        return self.ask(lambda client: {each.path for each in client.list_artifacts(run.info.run_id, folder or None)})

    def download(self, run: Any, path: str, folder: Path) -> Path:
        """Downloads an artifact of a run."""
        return self.ask(lambda client: Path(client.download_artifacts(run.info.run_id, path, str(folder))))

    def steps(self, run: Any, metric: str = "train/loss") -> list[int]:
        """The steps of all rows of a metric."""
        return self.ask(lambda client: sorted(row.step for row in client.get_metric_history(run.info.run_id, metric)))

    def kept(self, key: str) -> bool:
        """Whether MLflow has a checkpoint of the run, which is still RUNNING."""
        run = self.run(key)
        return bool(
            run and run.info.status == "RUNNING" and "checkpoints/last.pt" in self.artifacts(run, "checkpoints")
        )


@contextmanager
def tracking(cluster: Cluster, folder: Path) -> Iterator[Tracking]:
    """A connection during the block."""
    made = Tracking(cluster, folder)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.close()
