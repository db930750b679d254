"""ResNet18 in two parts, against torchvision's in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18
from torchvision.transforms import v2

from cnn_jobs.models.resnet import build_resnet18, resize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def state_dict(resnet18_file: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(resnet18_file)
    return content


def test_trunk_and_top_are_torchvisions_network(state_dict: dict[str, torch.Tensor]) -> None:
    trunk, top = build_resnet18(state_dict, 64, 10, seed=3)
    whole = resnet18(num_classes=10)
    own = {**trunk.layers.state_dict(), **top.state_dict()}
    whole.load_state_dict(own)
    assert own.keys() == state_dict.keys()
    assert all(torch.equal(own[name], state_dict[name]) for name in own if not name.startswith("fc."))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = trunk(images)
        assert features.shape == (2, *trunk.feature_shape) == (2, 256, 4, 4)
        # Convolutions by tiles round a little otherwise.
        torch.testing.assert_close(top.eval()(features), whole.eval()(images), rtol=1e-4, atol=1e-4)


def test_the_trunk_is_never_trained(state_dict: dict[str, torch.Tensor]) -> None:
    trunk, top = build_resnet18(state_dict, 64, 10, seed=3)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    trunk.train()
    top.train()
    loss = top(trunk(torch.randn(4, 3, 64, 64))).sum()
    loss.backward()
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert all(parameter.grad is not None for parameter in top.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_a_seed_decides_the_new_layers_and_nothing_else(state_dict: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    (first_trunk, first), (_, same), (other_trunk, other) = (
        build_resnet18(weights, 64, 10, seed) for weights, seed in ((None, 1), (None, 1), (None, 2))
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.fc.weight, other.fc.weight)
    assert not torch.equal(first.layer4[0].conv1.weight, other.layer4[0].conv1.weight)
    assert all(torch.equal(a, b) for a, b in zip(first_trunk.parameters(), other_trunk.parameters(), strict=True))
    _, given = build_resnet18(state_dict, 64, 10, seed=1)
    assert torch.equal(given.layer4[0].conv1.weight, state_dict["layer4.0.conv1.weight"])


@pytest.mark.parametrize("side", [32, 40])
def test_resizing_is_torchvisions(side: int) -> None:
    images = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floats = images.to(torch.float32) / 255
    # On floats it is the same function; on bytes torchvision rounds after rows and after columns: a byte at most.
    torch.testing.assert_close(
        resize(floats, (224, 224)), v2.Resize((224, 224), antialias=True)(floats), rtol=0, atol=1e-6
    )
    rounded = v2.Resize((224, 224), antialias=True)(images).to(torch.float32) / 255
    assert (resize(floats, (224, 224)) - rounded).abs().max() <= 1.001 / 255


def test_the_trunk_resizes_first(state_dict: dict[str, torch.Tensor]) -> None:
    trunk, _ = build_resnet18(state_dict, 64, 10, seed=0)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(images), trunk(resize(images, (64, 64))))


def test_the_digest_is_of_every_weight_and_statistic(state_dict: dict[str, torch.Tensor]) -> None:
    trunk, _ = build_resnet18(state_dict, 64, 10, seed=0)
    digest = trunk.digest()
    assert build_resnet18(state_dict, 64, 10, seed=1)[0].digest() == digest
    assert build_resnet18(None, 64, 10, seed=0)[0].digest() != digest
    for name in ("conv1.weight", "layer3.1.bn2.running_var"):
        changed = {**state_dict, name: state_dict[name].clone()}
        changed[name].view(-1)[-1] += 1e-3
        assert build_resnet18(changed, 64, 10, seed=0)[0].digest() != digest
