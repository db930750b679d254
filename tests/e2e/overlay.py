"""The stack for this cluster: a kustomization beside a copy of k8s/, and its Secret."""

from __future__ import annotations

import secrets
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.e2e.settings import Settings, split_image
from tests.helpers.kustomize import K8S

Object = dict[str, Any]
LABEL = "cnn-jobs/e2e"
MADE_BY = {
    "mlflow_image": "cnn-jobs-mlflow",
    "image": "cnn-jobs",
    "postgres_image": "postgres",
    "store_image": "chrislusf/seaweedfs",
}
# So that all fit on one node with two CPUs; with one user they need little.
SMALL = {"cpu": "100m", "memory": "256Mi"}
# For an image with only PostgreSQL's packages: what the official image's entrypoint does.
PLAIN_POSTGRES = """
initdb=$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb | tail -n 1)
PATH=$(dirname "$initdb"):$PATH
data=/var/lib/postgresql/e2e
if [ ! -e $data/made ]; then
  rm -rf $data
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  initdb -D $data -U mlflow -A scram-sha-256 --pwfile=/tmp/password -E UTF8 --locale=C
  echo 'create database mlflow' | postgres --single -D $data postgres
  echo 'host all all all scram-sha-256' >> $data/pg_hba.conf
  touch $data/made
fi
exec postgres -D $data -c listen_addresses='*' -c max_connections=100 -k /var/run/postgresql
"""


def write(folder: Path, settings: Settings) -> Path:
    """Writes a copy of k8s/ and a kustomization on it; returns the folder for 'kubectl apply -k'."""
    shutil.copytree(K8S, folder / "k8s")
    made = folder / "e2e"
    made.mkdir()
    (made / "kustomization.yaml").write_text(yaml.safe_dump(kustomization(settings), sort_keys=False))
    (made / "volume.yaml").write_text(yaml.safe_dump(_claim(settings)))
    return made


def kustomization(settings: Settings) -> Object:
    """The overlay: namespace, images, small requests, and the settings of this cluster."""
    store = ["../k8s/overlays/components/in-cluster-store"] if settings.store_in_cluster else []
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": settings.namespace,
        "resources": ["../k8s/stack", *(["volume.yaml"] if settings.on_volume else [])],
        "components": ["../k8s/overlays/components/no-gpu", *store],
        "images": [
            _image(name, getattr(settings, field)) for field, name in MADE_BY.items() if getattr(settings, field)
        ],
        "patches": [
            *_common_patches(),
            *_small_patches(settings),
            *_database_patches(settings),
            *_artifact_patches(settings),
        ],
    }


def _image(name: str, image: str) -> Object:
    new, tag, digest = split_image(image)
    return {"name": name, "newName": new, **({"digest": digest} if digest else {"newTag": tag})}


def _patch(kind: str, name: str, *operations: Object) -> Object:
    return {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump(list(operations))}


def _set(path: str, value: object, operation: str = "replace") -> Object:
    return {"op": operation, "path": path, "value": value}


def _common_patches() -> list[Object]:
    return [
        _patch("Namespace", "cnn-jobs", _set(f"/metadata/labels/{LABEL.replace('/', '~1')}", "true", "add")),
        _patch(
            "ConfigMap",
            "cnn-jobs",
            _set("/data/CNN_JOBS_DATA", "shapes", "add"),
            _set("/data/CNN_JOBS_EARLY_STOP_COUNT", "0", "add"),
        ),
    ]


def _small_patches(settings: Settings) -> list[Object]:
    requests = "/spec/template/spec/containers/0/resources/requests"
    found = [_patch("Deployment", "mlflow", _set(requests, {"cpu": "100m", "memory": "512Mi"}))]
    # Tested by Jobs made from them; running every quarter of an hour they would interfere.
    found += [_patch("CronJob", name, _set("/spec/suspend", True, "add")) for name in ("mlflow-gc", "cnn-jobs-reap")]
    claims = [("PersistentVolumeClaim", "cnn-jobs-data", "/spec")]
    for own, name in ((not settings.own_database, "postgres"), (settings.store_in_cluster, "store")):
        if own:
            found.append(_patch("StatefulSet", name, _set(requests, SMALL)))
            claims.append(("StatefulSet", name, "/spec/volumeClaimTemplates/0/spec"))
    for kind, name, spec in claims:
        # SeaweedFS needs room for twice seven volumes of 256 MB.
        size = "5Gi" if name == "store" else "1Gi"
        operations = [_set(f"{spec}/resources/requests/storage", size)]
        if settings.storage_class:
            operations.append(_set(f"{spec}/storageClassName", settings.storage_class, "add"))
        found.append(_patch(kind, name, *operations))
    return found


def _database_patches(settings: Settings) -> list[Object]:
    if settings.own_database:
        port = urlsplit(settings.backend_store_uri).port or 5432
        door = _set("/spec/egress/-", {"ports": [{"protocol": "TCP", "port": port}]}, "add")
        return [
            *(_delete(kind, "postgres") for kind in ("StatefulSet", "Service", "NetworkPolicy")),
            *(_patch("NetworkPolicy", name, door) for name in ("mlflow", "mlflow-gc")),
        ]
    pod = "/spec/template/spec"
    operations = [
        _set(f"{pod}/securityContext/{name}", settings.postgres_user) for name in ("runAsUser", "runAsGroup", "fsGroup")
    ]
    if settings.postgres_plain:
        # pg_isready may not be on its PATH.
        operations += _other_command(["sh", "-ec", PLAIN_POSTGRES], "exec", "postgres")
    return [_patch("StatefulSet", "postgres", *operations)]


def _other_command(command: list[str], probe: str, port: str) -> list[Object]:
    """Operations that replace the program of a StatefulSet's container, which is ready when it listens."""
    box = "/spec/template/spec/containers/0"
    operations = [_set(f"{box}/command", command, "add"), {"op": "remove", "path": f"{box}/args"}]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        operations.append({"op": "remove", "path": f"{box}/{kind}/{probe}"})
        operations.append(_set(f"{box}/{kind}/tcpSocket", {"port": port}, "add"))
    return operations


def _delete(kind: str, name: str) -> Object:
    version = {"StatefulSet": "apps/v1", "Service": "v1", "NetworkPolicy": "networking.k8s.io/v1"}[kind]
    thing = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "cnn-jobs"}}
    return {"patch": yaml.safe_dump({**thing, "$patch": "delete"})}


def _artifact_patches(settings: Settings) -> list[Object]:
    if settings.own_s3:
        parts = urlsplit(settings.s3_endpoint_url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        # No 'to': to anywhere, including the cluster.
        return [
            _patch(
                "NetworkPolicy", "mlflow-to-s3", _set("/spec/egress", [{"ports": [{"protocol": "TCP", "port": port}]}])
            )
        ]
    if settings.store_in_cluster and settings.store_command:
        command = shlex.split(settings.store_command)
        return [_patch("StatefulSet", "store", *_other_command(command, "httpGet", "s3"))]
    if not settings.on_volume:
        return []
    pod = "/spec/template/spec"
    volume = {"name": "artifacts", "persistentVolumeClaim": {"claimName": "mlflow-artifacts"}}
    return [
        _patch(
            "Deployment",
            "mlflow",
            _set(f"{pod}/volumes/-", volume, "add"),
            _set(f"{pod}/containers/0/volumeMounts/-", {"name": "artifacts", "mountPath": "/artifacts"}, "add"),
        )
    ]


def _claim(settings: Settings) -> Object:
    own = {"storageClassName": settings.storage_class} if settings.storage_class else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "mlflow-artifacts",
            "namespace": "cnn-jobs",
            "labels": {"app.kubernetes.io/part-of": "cnn-jobs"},
        },
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}, **own},
    }


def secret(settings: Settings) -> Object:
    """The Secret of docs/kubernetes-stack.md, with new random passwords."""
    password = secrets.token_hex(24)
    values = {
        "POSTGRES_PASSWORD": password,
        "MLFLOW_BACKEND_STORE_URI": settings.backend_store_uri
        or f"postgresql+psycopg://mlflow:{password}@postgres:5432/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://cnn-jobs/mlflow",
        "AWS_ACCESS_KEY_ID": settings.aws_access_key_id or secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": settings.aws_secret_access_key or secrets.token_hex(20),
    }
    if settings.own_s3:
        values["MLFLOW_ARTIFACTS_DESTINATION"] = settings.artifacts_destination
        values["MLFLOW_S3_ENDPOINT_URL"] = settings.s3_endpoint_url
        values["AWS_DEFAULT_REGION"] = settings.aws_default_region
    elif settings.on_volume:
        values["MLFLOW_ARTIFACTS_DESTINATION"] = "/artifacts"
    else:
        values["MLFLOW_S3_ENDPOINT_URL"] = "http://store:8333"
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "mlflow-server", "namespace": settings.namespace},
        "stringData": {name: value for name, value in values.items() if value},
    }
