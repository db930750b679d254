"""Settings of the suite, from environment variables; docs/e2e.md lists them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cnn_jobs.cluster.settings import Settings as JobSettings

VOLUME = "volume"
FLAGS = ("E2E_REQUIRE_NETWORK_POLICY", "E2E_POSTGRES_PLAIN")
VARIABLES = (
    "E2E_IMAGE",
    "E2E_MLFLOW_IMAGE",
    "E2E_POSTGRES_IMAGE",
    "E2E_POSTGRES_PLAIN",
    "E2E_POSTGRES_USER",
    "E2E_STORE_IMAGE",
    "E2E_STORE_COMMAND",
    "E2E_NAMESPACE",
    "E2E_STORAGE_CLASS",
    "E2E_BACKEND_STORE_URI",
    "E2E_ARTIFACTS_DESTINATION",
    "E2E_S3_ENDPOINT_URL",
    "E2E_AWS_ACCESS_KEY_ID",
    "E2E_AWS_SECRET_ACCESS_KEY",
    "E2E_AWS_DEFAULT_REGION",
    "E2E_REQUIRE_NETWORK_POLICY",
    "E2E_LONG_EPOCHS",
    "E2E_PATIENCE",
)
NUMBERS = {"E2E_POSTGRES_USER": int, "E2E_LONG_EPOCHS": int, "E2E_PATIENCE": float}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An empty image stands for that of the manifests. ``patience`` multiplies every time limit.

    Raises ``ValueError`` for invalid values and combinations.
    """

    image: str
    mlflow_image: str = ""
    postgres_image: str = ""
    postgres_plain: bool = False
    postgres_user: int = 999
    store_image: str = ""
    store_command: str = ""
    namespace: str = "cnn-jobs-e2e"
    storage_class: str = ""
    backend_store_uri: str = ""
    artifacts_destination: str = ""
    s3_endpoint_url: str = ""
    aws_access_key_id: str = ""
    aws_secret_access_key: str = ""
    aws_default_region: str = ""
    require_network_policy: bool = False
    # Epochs of the runs that are disturbed: some 80 steps and two validations each.
    long_epochs: int = 15
    patience: float = 1.0

    def __post_init__(self) -> None:
        JobSettings(image=self.image, namespace=self.namespace)  # raises for invalid names
        for name in ("mlflow_image", "postgres_image", "store_image"):
            if getattr(self, name) and split_image(getattr(self, name))[1:] == ("", ""):
                raise ValueError(f"E2E_{name.upper()} is '{getattr(self, name)}', but needs a tag")
        if self.artifacts_destination not in ("", VOLUME) and not re.match(r"s3://[^/]+", self.artifacts_destination):
            raise ValueError(
                f"E2E_ARTIFACTS_DESTINATION is '{self.artifacts_destination}', but must be s3://bucket/prefix, or "
                f"'{VOLUME}', or left out for an S3 server in the cluster"
            )
        if self.own_s3 and not (self.aws_access_key_id and self.aws_secret_access_key):
            raise ValueError("E2E_ARTIFACTS_DESTINATION needs E2E_AWS_ACCESS_KEY_ID and E2E_AWS_SECRET_ACCESS_KEY, too")
        if self.backend_store_uri and not urlsplit(self.backend_store_uri).hostname:
            raise ValueError("E2E_BACKEND_STORE_URI must look like postgresql+psycopg://user:password@host:5432/mlflow")

    @property
    def own_database(self) -> bool:
        """Whether the database is not the stack's."""
        return bool(self.backend_store_uri)

    @property
    def own_s3(self) -> bool:
        """Whether artifacts go to an existing bucket."""
        return self.artifacts_destination not in ("", VOLUME)

    @property
    def on_volume(self) -> bool:
        """Whether artifacts go to a volume of the MLflow pod; S3 is not tested then."""
        return self.artifacts_destination == VOLUME

    @property
    def store_in_cluster(self) -> bool:
        """Whether the stack includes an S3 server."""
        return not self.artifacts_destination


def why_not(environment: Mapping[str, str] = os.environ) -> str:
    """Why the suite cannot run, "" if it can."""
    missing = [name for name in ("KUBECONFIG", "E2E_IMAGE") if not environment.get(name)]
    return f"{' and '.join(missing)} not set: see docs/e2e.md" if missing else ""


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from variables. Raises ``ValueError``, also for an unknown variable."""
    if unknown := {name for name in environment if name.startswith("E2E_")} - set(VARIABLES):
        raise ValueError(f"{', '.join(sorted(unknown))}: no such setting; the settings are {', '.join(VARIABLES)}")
    given: dict[str, object] = {}
    for name in VARIABLES:
        text = environment.get(name, "")
        if name in FLAGS and text not in ("", "0", "1"):
            raise ValueError(f"{name} is '{text}', but must be 0 or 1")
        if text:
            given[name.removeprefix("E2E_").lower()] = _value(name, text)
    return Settings(**given)  # type: ignore[arg-type]


def _value(name: str, text: str) -> object:
    if name in FLAGS:
        return text == "1"
    try:
        return NUMBERS.get(name, str)(text)
    except ValueError:
        raise ValueError(f"{name} is '{text}', but must be a number") from None


def split_image(image: str) -> tuple[str, str, str]:
    """Name, tag and digest for kustomize; "" for a missing part."""
    name, _, digest = image.partition("@")
    before, colon, tag = name.rpartition(":")
    return (before, tag, digest) if colon and "/" not in tag else (name, "", digest)
