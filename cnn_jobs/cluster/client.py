"""Calls to a cluster's API through the official client, with its errors classified."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnn_jobs.errors import ClusterError, ClusterRefusalError, CnnJobsError, UserError, first_line

Object = dict[str, Any]
# The Jobs of cnn-jobs, whether made by 'submit' or by 'kubectl apply'.
LABEL, LABEL_VALUE = "app.kubernetes.io/name", "cnn-jobs"
SELECTOR = f"{LABEL}={LABEL_VALUE}"
# Seconds to connect, and without data during a response.
TIMEOUT_S = (5, 30)
# A followed log that is silent for this long is requested again: this detects a dead connection.
LOG_SILENCE_S = 300
MAX_FOLLOWED = 128
_VERSION = re.compile(r"v?(\d+)\.(\d+)\b")
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Cluster:
    """One namespace of one cluster. Results are plain JSON, since the client's model classes change with its version.

    Every call raises ``ClusterError`` (exit 1) if the same call may work later, and ``ClusterRefusalError`` (exit 2)
    if it never will.
    """

    def __init__(self, namespace: str, context: str = "") -> None:
        """Reads the kubeconfig, or in a pod its service account; does not connect yet."""
        configuration = _configuration(context)
        from kubernetes import client

        self.namespace, self.host = namespace, str(configuration.host)
        api = client.ApiClient(configuration)
        self._batch, self._core = client.BatchV1Api(api), client.CoreV1Api(api)
        self._groups, self._version = client.ApisApi(api), client.VersionApi(api)

    def create_job(self, manifest: Object) -> Object:
        """The Job as the cluster stores it, with its UID."""
        return self._json(self._batch.create_namespaced_job, self.namespace, _with_quantities_as_text(manifest))

    def jobs(self) -> list[Object]:
        """All Jobs of cnn-jobs, newest first."""
        return self._list(self._batch.list_namespaced_job, SELECTOR)[::-1]

    def job(self, name: str) -> Object | None:
        """The Job; ``None`` if there is none. Raises ``ClusterRefusalError`` if it does not belong to cnn-jobs."""
        try:
            found = self._json(self._batch.read_namespaced_job, name, self.namespace)
        except NotFoundError:
            return None
        if found["metadata"].get("labels", {}).get(LABEL) != LABEL_VALUE:
            raise ClusterRefusalError(f"Job {name} has no label {SELECTOR}: it is not from cnn-jobs; use kubectl")
        return found

    def delete_job(self, name: str, uid: str) -> None:
        """Deletes exactly this Job, after its pods; does nothing if it is gone already."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self._json(self._batch.delete_namespaced_job, name, self.namespace, body=options)
        except NotFoundError:
            return

    def pods(self, selector: str = SELECTOR) -> list[Object]:
        """Pods by their labels, oldest first."""
        return self._list(self._core.list_namespaced_pod, selector)

    @contextmanager
    def log(self, pod: str, container: str, *, follow: bool) -> Iterator[Iterator[bytes]]:
        """A pod's log from its beginning, in chunks as they arrive; each line begins with its time."""
        read = self._core.read_namespaced_pod_log
        timeout_s = (TIMEOUT_S[0], LOG_SILENCE_S) if follow else TIMEOUT_S
        options = {"container": container, "follow": follow, "timestamps": True, "_request_timeout": timeout_s}
        response = self._call(read, pod, self.namespace, **options)
        try:
            yield self._chunks(response)
        finally:
            # Not returned to the pool: the next request would read what is left of the log.
            response.close()

    def has_api_group(self, name: str) -> bool:
        """Whether the cluster serves this API group, that is, whether its controller is installed."""
        return any(each["name"] == name for each in self._json(self._groups.get_api_versions)["groups"])

    def version(self) -> tuple[int, int] | None:
        """Major and minor version of the cluster; ``None`` if its build has no version (0.0).

        From ``gitVersion``, as in kubectl: custom builds may leave ``major`` and ``minor`` empty.
        """
        found = _VERSION.match(str(self._json(self._version.get_code).get("gitVersion")))
        major, minor = (int(each) for each in found.groups()) if found else (0, 0)
        return (major, minor) if major else None

    def _chunks(self, response: Any) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        try:
            yield from response.stream(65536, decode_content=False)
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the log was cut off ({first_line(error)})") from error

    def _list(self, function: Callable[..., Any], selector: str) -> list[Object]:
        """Oldest first."""
        items: list[Object] = self._json(function, self.namespace, label_selector=selector)["items"]
        return sorted(items, key=lambda each: each["metadata"].get("creationTimestamp", ""))

    def _json(self, function: Callable[..., Any], *args: Any, **options: Any) -> Object:
        content: Object = json.loads(self._call(function, *args, **options, _request_timeout=TIMEOUT_S).data)
        return content

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return function(*args, **options, _preload_content=False)
        except ApiException as error:
            raise explain(int(error.status or 0), _message(error), self.namespace, self.host) from error
        except (HTTPError, OSError) as error:
            raise NoAnswerError(
                f"the cluster at {self.host} does not answer ({first_line(error)}); check the network, the VPN and "
                "the server in the kubeconfig ('kubectl cluster-info')"
            ) from error


class NotFoundError(ClusterRefusalError):
    """The cluster has no such object."""


class ConflictError(ClusterError):
    """The cluster has an object of this name already, or changed it at the same moment."""


class NoAnswerError(ClusterError):
    """It is unknown whether the call was carried out."""


def explain(status: int, message: str, namespace: str, host: str) -> CnnJobsError:
    """The error for an unsuccessful HTTP status and the message in its body."""
    match status:
        case 401:
            return ClusterError(
                f"the cluster at {host} rejects these credentials (401: {message}); they may have expired: log in "
                "again until 'kubectl auth whoami' works"
            )
        case 403 if "exceeded quota" in message:
            return ClusterError(f"{message}; wait until other Jobs are over ('cnn-jobs status'), or delete some")
        case 403 if "being terminated" in message:
            return ClusterError(f"{message}; wait until it is gone, then recreate it: kubectl apply -k k8s/stack")
        case 403 if "admission webhook" in message or "admission policy" in message.lower():
            return ClusterRefusalError(f"the cluster's rules do not admit it: {message}")
        case 403:
            return ClusterRefusalError(
                f"the cluster does not allow it: {message}; ask for the Role cnn-jobs-submit (k8s/stack/submit.yaml)"
            )
        case 404 if message.startswith("namespaces "):
            return ClusterRefusalError(
                f"the cluster has no namespace '{namespace}'; choose one with --namespace, or create it: "
                "kubectl apply -k k8s/stack"
            )
        case 404:
            return NotFoundError(f"{message} in namespace {namespace}")
        case 409:
            return ConflictError(f"the cluster reports a conflict: {message}; try again")
        case 400 | 413 | 415 | 422:
            return ClusterRefusalError(f"the cluster considers it invalid: {message}")
    if status == 429 or status >= 500:
        return ClusterError(f"the cluster at {host} failed ({status}: {message}); try again")
    return ClusterRefusalError(f"the cluster at {host} answered {status}: {message}")


def _with_quantities_as_text(manifest: Object) -> Object:
    """``cpu: 2`` as ``cpu: "2"``: equal for the API, but recent versions of the client validate that it is text."""
    content: Object = json.loads(json.dumps(manifest))
    for container in content["spec"]["template"]["spec"]["containers"]:
        for amounts in container["resources"].values():
            amounts.update({name: str(amount) for name, amount in amounts.items()})
    return content


def _configuration(context: str) -> Any:
    """The client's configuration, from the kubeconfig or the pod's service account."""
    try:
        from kubernetes import client, config
        from kubernetes.config import ConfigException
    except ImportError as error:
        raise UserError(
            f"the Kubernetes client is not installed ({error}); pip install 'cnn-jobs[kubernetes]'"
        ) from error
    from yaml import YAMLError

    configuration = client.Configuration()
    # cnn-jobs repeats calls itself where that helps.
    configuration.retries = False
    configuration.connection_pool_maxsize = MAX_FOLLOWED
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    try:
        if any(Path(each).is_file() for each in files.split(os.pathsep) if each):
            config.load_kube_config(  # type: ignore[no-untyped-call]
                files, context or None, configuration, persist_config=False
            )
        elif _SERVICE_ACCOUNT.is_file() and not context:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            raise UserError(
                f"no kubeconfig: {files} does not exist; set KUBECONFIG to the file that kubectl uses, or log in first"
            )
    except (ConfigException, YAMLError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the kubeconfig {files} is unusable ({first_line(error)}); check it with kubectl") from error
    return configuration


def _message(error: Any) -> str:
    """The message of the API's Status object, else the body, on one line."""
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = error.body or error.reason
    return " ".join(str(message or "no reason given").split())[:500]
