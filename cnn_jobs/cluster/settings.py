"""In what one rendering differs from another: image, namespace, GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cnn_jobs import __version__
from cnn_jobs.errors import UserError

# A DNS label (RFC 1123): what a namespace has to be called, and a claim may be.
DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
# The grammar of image names: https://github.com/distribution/reference, reference.go.
_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = rf"(?P<name>(?:{_DOMAIN}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@sha256:[0-9a-f]{{64}})?"
_EXAMPLE = f"registry.example/cnn-jobs:{__version__}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``image``: with a tag; ``gpus``: of each pod that trains, 0 for training on CPUs; ``state_claim``: the
    PersistentVolumeClaim that holds the state directory of trainings, "" for one that goes with the pod;
    ``data_claim``: that of the data volume, "" for Jobs whose data is in the image, in a bucket, or drawn.

    Raises ``UserError`` (exit 2) for an image without a tag or with ``latest``, and for what is no name.
    """

    image: str = f"cnn-jobs:{__version__}"
    namespace: str = "cnn-jobs"
    gpus: int = 1
    state_claim: str = ""
    data_claim: str = "cnn-jobs-data"

    def __post_init__(self) -> None:
        _check_image(self.image)
        check_name("--namespace", self.namespace, "namespaces")
        for flag, claim in (("--state-claim", self.state_claim), ("--data-claim", self.data_claim)):
            if claim:
                check_name(flag, claim, "persistentvolumeclaims")
        if self.gpus < 0:
            raise UserError(f"--gpu is {self.gpus}, but must be 0 or more; 0 trains on CPUs")


def check_name(flag: str, name: str, kind: str) -> None:
    """Raises ``UserError`` (exit 2) for what is no DNS label."""
    if not re.fullmatch(DNS_LABEL, name):
        raise UserError(
            f"{flag} is '{name}', but must be 1 to 63 lower-case letters, digits or '-', the first and last no '-'; "
            f"take a name that 'kubectl get {kind}' shows"
        )


def _check_image(image: str) -> None:
    found = re.fullmatch(_IMAGE, image, flags=re.ASCII)
    if not found:
        raise UserError(f"--image is '{image}', but must be NAME:TAG in lower case, as {_EXAMPLE}")
    if found["tag"] in (None, "latest"):
        what = "names 'latest'" if found["tag"] else "has no tag, which means 'latest'"
        raise UserError(
            f"--image is '{image}', which {what}: nobody could say later what ran; name a version, as {_EXAMPLE}"
        )
