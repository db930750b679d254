from __future__ import annotations

import hashlib
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from cnn_jobs.errors import CnnJobsError, InterruptedRunError, RemoteDataError, WeightsError
from cnn_jobs.interpret.network import pretrained_resnet18
from cnn_jobs.models import weights as module
from cnn_jobs.models.build import build_resnet18
from cnn_jobs.models.weights import IMAGENET_FILE, open_weights, stage_imagenet
from cnn_jobs.system.signals import StopRequest
from tests.helpers.datasets import put
from tests.helpers.servers import sending, unused_url


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's hub cache of this test."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(module, "IMAGENET_URL", f"{unused_url()}/{IMAGENET_FILE}")
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def imagenet_file(resnet18_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose digest is taken for that of ImageNet's weights."""
    monkeypatch.setattr(module, "IMAGENET_SHA256_BEGINS", sha256(resnet18_file)[:8])
    return resnet18_file


@pytest.fixture
def in_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rejected(source: str, error: type[CnnJobsError], message: str) -> str:
    with pytest.raises(error, match=message) as caught:
        open_weights(source)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_none_is_none() -> None:
    assert open_weights("none") is None


def test_a_file_is_read_with_its_digest(resnet18_file: Path) -> None:
    weights = open_weights(str(resnet18_file))
    assert weights
    assert weights.digest == sha256(resnet18_file)
    assert weights.source == str(resnet18_file)
    assert {"conv1.weight", "layer4.1.bn2.running_mean", "fc.bias"} <= weights.tensors.keys()


@pytest.mark.integration
def test_an_object_in_a_bucket_is_read(bucket: str, resnet18_file: Path) -> None:
    weights = open_weights(put(bucket, "nets/resnet18.pth", resnet18_file))
    assert weights
    assert weights.digest == sha256(resnet18_file)


def test_imagenets_are_taken_from_torchs_cache_if_their_digest_is_right(
    hub: Path, resnet18_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.mkdir(parents=True)
    shutil.copy(resnet18_file, hub / IMAGENET_FILE)
    assert "delete it" in rejected("imagenet", WeightsError, "expected f37072fd")
    digest = sha256(resnet18_file)
    monkeypatch.setattr(module, "IMAGENET_SHA256_BEGINS", digest[:8])
    weights = open_weights("imagenet")
    assert weights
    assert (weights.source, weights.digest) == ("imagenet", digest)


def test_imagenets_that_cannot_be_downloaded_name_the_alternatives(hub: Path) -> None:
    line = rejected("imagenet", RemoteDataError, "cannot be downloaded .*Connection refused")
    for way in ("--weights PATH", "--weights s3://bucket/key", "$TORCH_HOME/hub/checkpoints", IMAGENET_FILE):
        assert way in line


def test_the_downloaded_weights_are_those_of_torchvision() -> None:
    assert ResNet18_Weights.IMAGENET1K_V1.url == module.IMAGENET_URL


def without(name: str) -> dict[str, Any]:
    content = dict(resnet18().state_dict())
    del content[name]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict"),
        ({"conv1.weight": 3}, "holds no state dict"),
        ({0: torch.zeros(1)}, "holds no state dict"),
        (without("layer3.0.conv1.weight"), r"1 tensors are not those.*layer3.0.conv1.weight \(missing, expected \(256"),
        ({**resnet18().state_dict(), "extra": torch.zeros(1)}, r"extra \(\(1,\), expected none\)"),
        ({**resnet18().state_dict(), "bn1.weight": torch.zeros(3)}, r"bn1.weight \(\(3,\), expected \(64,\)\)"),
    ],
)
def test_a_file_of_another_network_is_rejected(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    rejected(str(tmp_path / "other.pth"), WeightsError, message)


def test_a_head_for_other_classes_or_none_is_accepted(tmp_path: Path) -> None:
    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "seven.pth")
    weights = open_weights(str(tmp_path / "seven.pth"))
    assert weights
    assert weights.has_head
    narrow = {**resnet18().state_dict(), "fc.weight": torch.zeros(1000, 3)}
    for content in (narrow, without("fc.bias")):
        torch.save(content, tmp_path / "half.pth")
        weights = open_weights(str(tmp_path / "half.pth"))
        assert weights
        assert not weights.has_head
    assert pretrained_resnet18(weights).note == "the weights have no last layer: the network's answer is random"


def test_older_files_without_batch_counters_are_accepted(tmp_path: Path) -> None:
    """Probably like torchvision's own, by its size."""
    content = {name: tensor for name, tensor in resnet18().state_dict().items() if "num_batches" not in name}
    assert len(content) == 102
    torch.save(content, tmp_path / "old.pth")
    weights = open_weights(str(tmp_path / "old.pth"))
    assert weights
    backbone, head = build_resnet18(weights.tensors, 64, 10, seed=0)
    assert torch.equal(backbone.layers.conv1.weight, content["conv1.weight"])
    assert torch.equal(head.layer4[1].bn2.running_var, content["layer4.1.bn2.running_var"])
    assert pretrained_resnet18(weights).note == ""


def test_weights_are_named_by_their_digest(
    resnet18_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy.pth").write_bytes(resnet18_file.read_bytes())
    one, other = open_weights(str(resnet18_file)), open_weights(str(tmp_path / "copy.pth"))
    assert one
    assert other
    assert one.name == other.name == f"sha256:{one.digest[:12]}"
    monkeypatch.setattr(module, "IMAGENET_SHA256_BEGINS", one.digest[:8])
    assert one.name == "imagenet"


def test_missing_and_damaged_files_are_rejected(tmp_path: Path) -> None:
    rejected(str(tmp_path / "none.pth"), WeightsError, "no such file; --weights takes imagenet, none, a file or s3://")
    (tmp_path / "text.pth").write_text("not a state dict")
    rejected(str(tmp_path / "text.pth"), WeightsError, "is no file of weights")
    cut = tmp_path / "cut.pth"
    torch.save(resnet18().state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    rejected(str(cut), WeightsError, "is no file of weights")


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    rejected(str(tmp_path / "evil.pth"), WeightsError, "is no file of weights")
    assert not (tmp_path / "touched").exists()


def test_a_signal_while_weights_are_read_is_no_damage(resnet18_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 would end the Job for good."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    StopRequest().install()
    monkeypatch.setattr(torch, "load", lambda *args, **more: signal.raise_signal(signal.SIGTERM))
    try:
        with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
            open_weights(str(resnet18_file))
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


# -- staging -----------------------------------------------------------------------------------------------------------


def test_imagenets_are_staged_from_a_mirror_or_a_file_if_their_digest_is_right(
    hub: Path, imagenet_file: Path, tmp_path: Path, in_pod: None
) -> None:
    rejected("imagenet", WeightsError, r"kubectl apply -f k8s/prepare-data-job\.yaml")
    content = {"/w.pth": imagenet_file.read_bytes()}
    with sending(lambda path: (200, content[path])) as (address, _):
        staged = stage_imagenet(f"{address}/w.pth")
        assert (staged.path, staged.fresh, staged.digest) == (hub / IMAGENET_FILE, True, sha256(imagenet_file))
        assert open_weights("imagenet") is not None  # as in a training pod
        assert not stage_imagenet(f"{address}/w.pth").fresh
        staged.path.write_bytes(staged.path.read_bytes()[:-1000] + bytes(1000))
        assert stage_imagenet(str(imagenet_file)).fresh
        assert sha256(staged.path) == staged.digest
        staged.path.unlink()
        other = torch.load(imagenet_file, weights_only=True)
        other["fc.bias"] += 1
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match="give ImageNet's own file"):
            stage_imagenet(str(tmp_path / "other.pth"))
        content["/w.pth"] = (tmp_path / "other.pth").read_bytes()
        with pytest.raises(RemoteDataError, match="cannot be downloaded"):
            stage_imagenet(f"{address}/w.pth")
    assert not staged.path.exists()


def test_an_interrupted_download_leaves_no_file_and_is_repeated_by_the_next_attempt(
    hub: Path, imagenet_file: Path, in_pod: None
) -> None:
    content = imagenet_file.read_bytes()
    answers = [(200, content), (200, content[: len(content) // 2]), (404, b"")]
    with sending(lambda path: answers.pop(), len(content)) as (address, _):
        for message in ("404", "cannot be downloaded"):
            with pytest.raises(RemoteDataError, match=message) as caught:
                stage_imagenet(f"{address}/resnet18.pth")
            assert caught.value.exit_code == 1
            assert list(hub.iterdir()) == []
        assert stage_imagenet(f"{address}/resnet18.pth").fresh


@pytest.mark.integration
def test_imagenets_are_staged_from_a_bucket_without_a_second_copy(
    hub: Path, imagenet_file: Path, bucket: str, tmp_path: Path, in_pod: None
) -> None:
    assert stage_imagenet(put(bucket, "resnet18.pth", imagenet_file)).fresh
    assert [path.name for path in hub.iterdir()] == [IMAGENET_FILE]
    assert not list((tmp_path / "cache").glob("*"))
    shutil.rmtree(hub)
    (tmp_path / "other.pth").write_text("something else")
    with pytest.raises(WeightsError, match="is no file of weights"):
        stage_imagenet(put(bucket, "other.pth", tmp_path / "other.pth"))
