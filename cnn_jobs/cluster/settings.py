"""What one rendering of the manifests may change: image, namespace, GPUs and volumes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cnn_jobs import __version__
from cnn_jobs.errors import UserError

# A DNS label (RFC 1123): required of a namespace, allowed for a claim.
DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
# The grammar of image names: https://github.com/distribution/reference, reference.go.
_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = rf"(?P<name>(?:{_DOMAIN}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@sha256:[0-9a-f]{{64}})?"
_EXAMPLE = f"registry.example/cnn-jobs:{__version__}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``image`` has a tag. ``gpus`` is per training pod; 0 trains on CPUs. ``state_claim``: PersistentVolumeClaim for
    the state directory of trainings, "" for a volume that is deleted with the pod. ``data_claim``: that of the data
    volume, "" for data that is in the image, in a bucket, or generated.

    Raises ``UserError`` (exit 2) for an image without a tag or with ``latest``, and for an invalid name.
    """

    image: str = f"cnn-jobs:{__version__}"
    namespace: str = "cnn-jobs"
    gpus: int = 1
    state_claim: str = ""
    data_claim: str = "cnn-jobs-data"

    def __post_init__(self) -> None:
        _check_image(self.image)
        check_name("--namespace", self.namespace, "namespaces")
        for option, claim in (("--state-claim", self.state_claim), ("--data-claim", self.data_claim)):
            if claim:
                check_name(option, claim, "persistentvolumeclaims")
        if self.gpus < 0:
            raise UserError(f"--gpu is {self.gpus}, but must be 0 or more; 0 trains on CPUs")


def check_name(option: str, name: str, kind: str) -> None:
    """Raises ``UserError`` (exit 2) unless ``name`` is a DNS label."""
    if not re.fullmatch(DNS_LABEL, name):
        raise UserError(
            f"{option} is '{name}', but must be 1 to 63 lower-case letters, digits or '-', the first and last no '-'; "
            f"take a name that 'kubectl get {kind}' shows"
        )


def _check_image(image: str) -> None:
    found = re.fullmatch(_IMAGE, image, flags=re.ASCII)
    if not found:
        raise UserError(f"--image is '{image}', but must be NAME:TAG in lower case, as {_EXAMPLE}")
    if found["tag"] in (None, "latest"):
        what = "names 'latest'" if found["tag"] else "has no tag, which means 'latest'"
        raise UserError(
            f"--image is '{image}', which {what}: that does not identify what ran; name a version, as {_EXAMPLE}"
        )
