"""Calls to a cluster's API by the official client, and what it answers in this project's words."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnn_jobs.errors import ClusterError, ClusterRefusalError, CnnJobsError, UserError

Object = dict[str, Any]
# Of this program, whoever made them: 'submit' or 'kubectl apply'.
OURS = "app.kubernetes.io/name=cnn-jobs"
# Seconds to connect, and of silence in an answer.
TIMEOUT_S = (5, 30)
# A follower of a silent log asks again after this time: a connection that died unheard is found.
LOG_SILENCE_S = 300
FOLLOWERS = 128
_VERSION = re.compile(r"v?(\d+)\.(\d+)\b")
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Cluster:
    """One namespace of one cluster. Answers are JSON as it came, for the client's own classes change with its version.

    Every call raises ``ClusterError`` (exit 1) where the same call may work later, ``ClusterRefusalError`` (exit 2)
    where it never will.
    """

    def __init__(self, namespace: str, context: str = "") -> None:
        """Reads the kubeconfig, or in a pod its service account; connects to nothing yet."""
        self.namespace = namespace
        client, configuration = _configure(context)
        self.host = str(configuration.host)
        api = client.ApiClient(configuration)
        self._batch, self._core, self._groups = client.BatchV1Api(api), client.CoreV1Api(api), client.ApisApi(api)
        self._version = client.VersionApi(api)
        self._delete_options = client.V1DeleteOptions

    def create_job(self, manifest: Object) -> Object:
        """The Job as the cluster has it then, with its UID."""
        return self._json(self._batch.create_namespaced_job, self.namespace, _with_quantities_as_text(manifest))

    def jobs(self) -> list[Object]:
        """All Jobs of this program, the newest first."""
        found: list[Object] = self._json(self._batch.list_namespaced_job, self.namespace, label_selector=OURS)["items"]
        return sorted(found, key=lambda job: job["metadata"].get("creationTimestamp", ""), reverse=True)

    def job(self, name: str) -> Object | None:
        """The Job; ``None`` where there is none. Raises ``ClusterRefusalError`` where it is not of this program."""
        try:
            found = self._json(self._batch.read_namespaced_job, name, self.namespace)
        except NotThereError:
            return None
        key, _, value = OURS.partition("=")
        if found["metadata"].get("labels", {}).get(key) != value:
            raise ClusterRefusalError(f"Job {name} has no label {OURS}: it is none of cnn-jobs; use kubectl")
        return found

    def delete_job(self, name: str, uid: str) -> None:
        """Deletes this very Job once its pods are gone; where it is gone already, nothing happens."""
        options = self._delete_options(propagation_policy="Foreground", preconditions={"uid": uid})
        try:
            self._json(self._batch.delete_namespaced_job, name, self.namespace, body=options)
        except NotThereError:
            return

    def pods(self, selector: str = OURS) -> list[Object]:
        """Pods by their labels, the oldest first."""
        found: list[Object] = self._json(self._core.list_namespaced_pod, self.namespace, label_selector=selector)[
            "items"
        ]
        return sorted(found, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))

    @contextmanager
    def log(self, pod: str, container: str, *, follow: bool) -> Iterator[Iterator[bytes]]:
        """The log of a pod from its beginning, each line with its time, in pieces as they come."""
        read = self._core.read_namespaced_pod_log
        settings = {"container": container, "follow": follow, "timestamps": True}
        silence_s = (TIMEOUT_S[0], LOG_SILENCE_S) if follow else TIMEOUT_S
        response = self._call(read, pod, self.namespace, **settings, _preload_content=False, _request_timeout=silence_s)
        try:
            yield self._pieces(response)
        finally:
            # Not back to the pool: what is left of it would be read first.
            response.close()

    def has_group(self, name: str) -> bool:
        """Whether the cluster serves this group of the API, of a controller that may be installed or not."""
        groups = self._json(self._groups.get_api_versions)["groups"]
        return any(each["name"] == name for each in groups)

    def version(self) -> tuple[int, int] | None:
        """The cluster's major and minor version; ``None`` where its build does not say (0.0).

        By ``gitVersion``, as kubectl does: builds of one's own may leave ``major`` and ``minor`` empty.
        """
        found = _VERSION.match(str(self._json(self._version.get_code).get("gitVersion")))
        major, minor = (int(each) for each in found.groups()) if found else (0, 0)
        return (major, minor) if major else None

    def _pieces(self, response: Any) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        try:
            yield from response.stream(65536, decode_content=False)
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the log broke off ({_first_line(error)})") from error

    def _json(self, function: Callable[..., Any], *args: Any, **settings: Any) -> Object:
        response = self._call(function, *args, **settings, _preload_content=False, _request_timeout=TIMEOUT_S)
        content: Object = json.loads(response.data)
        return content

    def _call(self, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return function(*args, **settings)
        except ApiException as error:
            raise explain(int(error.status or 0), _message(error), self.namespace, self.host) from error
        except (HTTPError, OSError) as error:
            raise NoAnswerError(
                f"the cluster at {self.host} does not answer ({_first_line(error)}); check the network, the VPN and "
                "the server in the kubeconfig ('kubectl cluster-info')"
            ) from error


class NotThereError(ClusterRefusalError):
    """The cluster has no such object."""


class NameTakenError(ClusterError):
    """The cluster has an object of this name already, or changed it in the same moment."""


class NoAnswerError(ClusterError):
    """Nobody knows whether the call was carried out."""


def explain(status: int, message: str, namespace: str, host: str) -> CnnJobsError:
    """The error of an answer that is none of success, by its HTTP status and the message in it."""
    match status:
        case 401:
            return ClusterError(
                f"the cluster at {host} does not take these credentials (401: {message}); they may have expired: log "
                "in again until 'kubectl auth whoami' works"
            )
        case 403 if "exceeded quota" in message:
            return ClusterError(f"{message}; wait until other Jobs are over ('cnn-jobs status'), or delete some")
        case 403 if "being terminated" in message:
            return ClusterError(f"{message}; wait until it is gone, then make it anew: kubectl apply -k k8s/stack")
        case 403 if "admission webhook" in message or "admission policy" in message.lower():
            return ClusterRefusalError(f"the cluster's rules do not admit it: {message}")
        case 403:
            return ClusterRefusalError(
                f"the cluster does not allow it: {message}; ask for the Role cnn-jobs-submit (k8s/stack/submit.yaml)"
            )
        case 404 if message.startswith("namespaces "):
            return ClusterRefusalError(
                f"the cluster has no namespace '{namespace}'; name one by --namespace, or make it: "
                "kubectl apply -k k8s/stack"
            )
        case 404:
            return NotThereError(f"{message} in namespace {namespace}")
        case 409:
            return NameTakenError(f"the cluster found a conflict: {message}; try again")
        case 400 | 413 | 415 | 422:
            return ClusterRefusalError(f"the cluster takes it for invalid: {message}")
    if status == 429 or status >= 500:
        return ClusterError(f"the cluster at {host} failed ({status}: {message}); try again")
    return ClusterRefusalError(f"the cluster at {host} answered {status}: {message}")


def _with_quantities_as_text(manifest: Object) -> Object:
    """``cpu: 2`` as ``cpu: "2"``, which is the same to the API; the client's newer versions take only text."""
    content: Object = json.loads(json.dumps(manifest))
    for container in content["spec"]["template"]["spec"]["containers"]:
        for amounts in container["resources"].values():
            amounts.update({name: str(amount) for name, amount in amounts.items()})
    return content


def _configure(context: str) -> tuple[Any, Any]:
    """The client's module, and where the cluster is."""
    try:
        from kubernetes import client, config
        from kubernetes.config import ConfigException
    except ImportError as error:
        raise UserError(
            f"the Kubernetes client is not installed ({error}); pip install 'cnn-jobs[kubernetes]'"
        ) from error
    from yaml import YAMLError

    configuration = client.Configuration()
    # This program repeats calls itself where that is of use.
    configuration.retries = False
    configuration.connection_pool_maxsize = FOLLOWERS
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    try:
        if any(Path(each).is_file() for each in files.split(os.pathsep) if each):
            config.load_kube_config(  # type: ignore[no-untyped-call]
                files, context or None, configuration, persist_config=False
            )
        elif _ACCOUNT.is_file() and not context:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            raise UserError(
                f"no kubeconfig: {files} is not there; set KUBECONFIG to the file that kubectl uses, or log in first"
            )
    except (ConfigException, YAMLError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the kubeconfig {files} cannot be used ({_first_line(error)}); check it with kubectl"
        ) from error
    return client, configuration


def _message(error: Any) -> str:
    try:
        content = json.loads(error.body)
        message = content["message"] if isinstance(content, Mapping) else error.body
    except (TypeError, ValueError, KeyError):
        message = error.body or error.reason
    return " ".join(str(message or "no reason given").split())[:500]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
