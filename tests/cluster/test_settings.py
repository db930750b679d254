from __future__ import annotations

import pytest

from cnn_jobs import __version__
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import UserError
from tests.helpers.job_rules import LABEL

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "image",
    [
        "cnn-jobs:0.1.0",
        "registry.example/cnn-jobs:0.1.0",
        "registry.example:5000/team/cnn_jobs:v1-cuda",
        "localhost:5000/cnn-jobs:1",
        f"ghcr.io/some-one/cnn-jobs:0.1.0@{DIGEST}",
        "cnn-jobs:latest-1",
    ],
)
def test_images_with_a_tag_are_valid(image: str) -> None:
    assert Settings(image=image).image == image


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("cnn-jobs", "has no tag"),
        ("registry.example:5000/cnn-jobs", "has no tag"),
        (f"cnn-jobs@{DIGEST}", "has no tag"),
        ("cnn-jobs:latest", "names 'latest'"),
        (f"registry.example/cnn-jobs:latest@{DIGEST}", "names 'latest'"),
        ("", "must be NAME:TAG"),
        ("cnn-jobs:", "must be NAME:TAG"),
        ("Cnn-Jobs:1", "must be NAME:TAG"),
        ("cnn-jobs:0.1.0 ", "must be NAME:TAG"),
        ("cnn-jobs:0.1.0\n", "must be NAME:TAG"),
        ("http://registry/cnn-jobs:1", "must be NAME:TAG"),
        ("cnn-jobs:.1", "must be NAME:TAG"),
        ("cnn-jobs:" + "1" * 129, "must be NAME:TAG"),
        ("cnn-jobs:1@sha256:abc", "must be NAME:TAG"),
        ("cnn-jobs:é", "must be NAME:TAG"),
    ],
)
def test_images_without_a_fixed_tag_are_refused(image: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        Settings(image=image)
    assert str(error.value).startswith(f"--image is '{image}', ")
    assert str(error.value).endswith(f"registry.example/cnn-jobs:{__version__}")


@pytest.mark.parametrize("name", ["", "Cnn", "a_b", "-a", "a-", "a" * 64, "a.b"])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--namespace is '{name}', but must be"):
        Settings(namespace=name)
    if name:
        with pytest.raises(UserError, match=f"--state-claim is '{name}', but must be"):
            Settings(state_claim=name)


def test_the_shortest_and_longest_names_are_valid() -> None:
    assert Settings(namespace="a", state_claim="a" * 63).state_claim == "a" * 63


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(UserError, match="--gpu is -1"):
        Settings(gpus=-1)


def test_the_version_is_a_valid_label_and_tag() -> None:
    assert LABEL.fullmatch(__version__)
    assert Settings().image == f"cnn-jobs:{__version__}"
