"""Pretrained weights: found, checked, or refused in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from torchvision.models import resnet18

from cnn_jobs.errors import CnnJobsError, RemoteDataError, WeightsError
from cnn_jobs.interpret.network import pretrained_resnet18
from cnn_jobs.models import weights as module
from cnn_jobs.models.resnet import build_resnet18
from cnn_jobs.models.weights import IMAGENET_FILE, open_weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's hub cache of this test; what is not in it cannot be downloaded."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def download(url: str, *args: object, **settings: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return folder


def refused(source: str, error: type[CnnJobsError], words: str) -> str:
    with pytest.raises(error, match=words) as caught:
        open_weights(source)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_none_is_none() -> None:
    assert open_weights("none") is None


def test_a_file_is_read_with_its_digest(resnet18_file: Path) -> None:
    weights = open_weights(str(resnet18_file))
    assert weights
    assert weights.digest == hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    assert weights.source == str(resnet18_file)
    assert {"conv1.weight", "layer4.1.bn2.running_mean", "fc.bias"} <= weights.tensors.keys()


@pytest.mark.integration
def test_an_object_in_a_bucket_is_read(bucket: str, resnet18_file: Path) -> None:
    boto3.client("s3").upload_file(str(resnet18_file), bucket, "nets/resnet18.pth")
    weights = open_weights(f"s3://{bucket}/nets/resnet18.pth")
    assert weights
    assert weights.digest == hashlib.sha256(resnet18_file.read_bytes()).hexdigest()


def test_imagenets_are_taken_from_torchs_cache_if_their_digest_is_right(
    hub: Path, resnet18_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / IMAGENET_FILE).write_bytes(resnet18_file.read_bytes())
    line = refused("imagenet", WeightsError, "expected f37072fd")
    assert "delete it" in line
    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "IMAGENET_SHA256_BEGINS", digest[:8])
    weights = open_weights("imagenet")
    assert weights
    assert (weights.source, weights.digest) == ("imagenet", digest)


def test_imagenets_that_cannot_be_had_name_the_ways_to_have_them(hub: Path) -> None:
    line = refused("imagenet", RemoteDataError, "no route to host")
    for way in ("--weights PATH", "--weights s3://bucket/key", "$TORCH_HOME/hub/checkpoints", IMAGENET_FILE):
        assert way in line


def test_what_torchvision_calls_these_weights_is_what_is_downloaded() -> None:
    from torchvision.models import ResNet18_Weights

    assert ResNet18_Weights.IMAGENET1K_V1.url == module.IMAGENET_URL


def without(name: str) -> dict[str, Any]:
    content = dict(resnet18().state_dict())
    del content[name]
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no state dict"),
        ({"conv1.weight": 3}, "holds no state dict"),
        ({0: torch.zeros(1)}, "holds no state dict"),
        (without("layer3.0.conv1.weight"), r"1 tensors are not those.*layer3.0.conv1.weight \(missing, expected \(256"),
        ({**resnet18().state_dict(), "extra": torch.zeros(1)}, r"extra \(\(1,\), expected none\)"),
        ({**resnet18().state_dict(), "bn1.weight": torch.zeros(3)}, r"bn1.weight \(\(3,\), expected \(64,\)\)"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    refused(str(tmp_path / "other.pth"), WeightsError, words)


def test_a_head_for_other_classes_is_no_obstacle(tmp_path: Path) -> None:
    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "seven.pth")
    weights = open_weights(str(tmp_path / "seven.pth"))
    assert weights
    assert weights.has_head
    torch.save(without("fc.bias"), tmp_path / "half.pth")
    weights = open_weights(str(tmp_path / "half.pth"))
    assert weights
    assert not weights.has_head
    assert pretrained_resnet18(weights).note == "the weights have no last layer: the network's answer is random"


def test_older_files_that_do_not_count_batches_are_taken(tmp_path: Path) -> None:
    """As torchvision's own, probably: its size fits to that of a state dict without them."""
    content = {name: tensor for name, tensor in resnet18().state_dict().items() if "num_batches" not in name}
    assert len(content) == 102
    torch.save(content, tmp_path / "old.pth")
    weights = open_weights(str(tmp_path / "old.pth"))
    assert weights
    trunk, top = build_resnet18(weights.tensors, 64, 10, seed=0)
    assert torch.equal(trunk.layers.conv1.weight, content["conv1.weight"])
    assert torch.equal(top.layer4[1].bn2.running_var, content["layer4.1.bn2.running_var"])
    assert pretrained_resnet18(weights).note == ""


def test_weights_are_named_by_what_they_are(
    resnet18_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy.pth").write_bytes(resnet18_file.read_bytes())
    one, other = open_weights(str(resnet18_file)), open_weights(str(tmp_path / "copy.pth"))
    assert one
    assert other
    assert one.name == other.name == f"sha256:{one.digest[:12]}"
    monkeypatch.setattr(module, "IMAGENET_SHA256_BEGINS", one.digest[:8])
    assert one.name == "imagenet"


def test_no_file_and_no_weights_are_refused(tmp_path: Path) -> None:
    refused(str(tmp_path / "none.pth"), WeightsError, "no such file; --weights takes imagenet, none, a file or s3://")
    (tmp_path / "text.pth").write_text("not a state dict")
    refused(str(tmp_path / "text.pth"), WeightsError, "is no file of weights")
    cut = (tmp_path / "cut.pth", resnet18().state_dict())
    torch.save(cut[1], cut[0])
    cut[0].write_bytes(cut[0].read_bytes()[:-1000])
    refused(str(cut[0]), WeightsError, "is no file of weights")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    refused(str(tmp_path / "evil.pth"), WeightsError, "is no file of weights")
    assert not (tmp_path / "touched").exists()
