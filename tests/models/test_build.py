import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import v2

from cnn_jobs.models.build import PixelModel, build_model, build_resnet18, resize
from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform
from cnn_jobs.tasks import TASKS, get_task

IMAGE = (3, 32, 32)
SMALL = ConvNet(blocks=(ConvBlock(filters=4, kernel=3, padding=1, batch_norm=True),), hidden=8, dropout=0.4)

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_the_seed_alone_decides_the_weights_byte_for_byte() -> None:
    first, second = weights(build_model(SMALL, IMAGE, 10, seed=0)), weights(build_model(SMALL, IMAGE, 10, 2**63 - 1))
    learned = [name for name in first if name.startswith(("conv", "linear"))]
    assert len(learned) == 6
    assert all(first[name] != second[name] for name in learned)
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    assert weights(build_model(SMALL, IMAGE, 10, seed=0)) == first
    assert torch.equal(torch.rand(4), expected)  # torch's own generator is unchanged


MAX_BLOCK = ["Conv2d", "MaxPool2d", "ReLU"]
AVERAGE_BLOCK = ["Conv2d", "ReLU", "AvgPool2d"]


@pytest.mark.parametrize(
    ("name", "block", "head"),
    [
        ("task2", MAX_BLOCK, ["Linear", "ReLU", "Linear"]),
        ("task3-arch1", [*MAX_BLOCK, "BatchNorm2d"], ["Linear", "ReLU", "Linear"]),
        ("task3-arch2", [*MAX_BLOCK, "BatchNorm2d"], ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]),
        ("task3c-avgpool", [*AVERAGE_BLOCK, "BatchNorm2d"], ["Linear", "ReLU", "Linear"]),
        ("task3d-batchnorm", [*MAX_BLOCK, "BatchNorm2d"], ["Linear", "ReLU", "Linear"]),
        ("task3d-plain", MAX_BLOCK, ["Linear", "ReLU", "Linear"]),
        ("task3e", [*MAX_BLOCK, "BatchNorm2d"], ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]),
    ],
)
def test_the_order_of_layers(name: str, block: list[str], head: list[str]) -> None:
    model = build_model(get_task(name).network, IMAGE, 10, seed=0)
    assert [type(module).__name__ for module in model] == [*block * 3, "Flatten", *head]
    assert [module.p for module in model if isinstance(module, nn.Dropout)] == [0.4] * head.count("Dropout")


def relu_and_pool_swapped(model: nn.Sequential) -> nn.Sequential:
    """A copy with ReLU and pooling of every block in the other order."""
    modules = list(copy.deepcopy(model).named_children())
    for place in range(len(modules) - 1):
        first, second = modules[place][1], modules[place + 1][1]
        if {type(first), type(second)} in ({nn.ReLU, nn.MaxPool2d}, {nn.ReLU, nn.AvgPool2d}):
            modules[place], modules[place + 1] = modules[place + 1], modules[place]
    swapped = nn.Sequential(OrderedDict(modules))
    assert [name for name, _ in swapped.named_children()] != [name for name, _ in model.named_children()]
    return swapped


def outputs_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of one training step on fixed images; dropout draws the same numbers for every model."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, *IMAGE, generator=generator)
    labels = torch.randint(0, 10, (4,), generator=generator)
    torch.manual_seed(4)
    logits = model.train()(images)
    nn.functional.cross_entropy(logits, labels).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gradients[name] = parameter.grad
    return logits.detach(), gradients


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("task3c-avgpool", "task4a")])
def test_relu_after_max_pooling_gives_the_outputs_and_gradients_of_relu_before_it(name: str) -> None:
    model = build_model(get_task(name).network, IMAGE, 10, seed=1)
    logits, gradients = outputs_and_gradients(model)
    expected_logits, expected_gradients = outputs_and_gradients(relu_and_pool_swapped(model))
    assert torch.equal(logits, expected_logits)
    for layer, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0, layer
        assert torch.equal(gradient, expected_gradients[layer]), layer


def test_relu_and_average_pooling_cannot_be_swapped() -> None:
    model = build_model(get_task("task3c-avgpool").network, IMAGE, 10, seed=1)
    logits, _ = outputs_and_gradients(model)
    swapped, _ = outputs_and_gradients(relu_and_pool_swapped(model))
    assert float((logits - swapped).abs().max()) > 0.01


def test_a_pixel_model_normalises_the_input_of_its_network() -> None:
    transform = InputTransform(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = torch.rand(2, 3, 4, 5)
    normalised = PixelModel(nn.Identity(), transform)(pixels)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        torch.testing.assert_close(normalised[:, channel], (pixels[:, channel] - mean) / std)
    model = PixelModel(build_model(SMALL, IMAGE, 10, seed=0), transform)
    assert {"mean", "std"} <= set(model.state_dict())
    assert not [name for name, _ in model.named_parameters() if not name.startswith("network.")]


# -- ResNet18 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state_dict(resnet18_file: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(resnet18_file)
    return content


def test_backbone_and_head_are_together_torchvisions_network(state_dict: dict[str, torch.Tensor]) -> None:
    backbone, head = build_resnet18(state_dict, 64, 10, seed=3)
    whole = resnet18(num_classes=10)
    own = {**backbone.layers.state_dict(), **head.state_dict()}
    whole.load_state_dict(own)
    assert own.keys() == state_dict.keys()
    assert all(torch.equal(own[name], state_dict[name]) for name in own if not name.startswith("fc."))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = backbone(images)
        assert features.shape == (2, *backbone.feature_shape) == (2, 256, 4, 4)
        torch.testing.assert_close(head.eval()(features), whole.eval()(images))


def test_the_backbone_is_not_trained(state_dict: dict[str, torch.Tensor]) -> None:
    backbone, head = build_resnet18(state_dict, 64, 10, seed=3)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.train()
    head.train()
    loss = head(backbone(torch.randn(4, 3, 64, 64))).sum()
    loss.backward()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_seed_decides_only_the_new_layers(state_dict: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    (first_backbone, first), (_, same), (other_backbone, other) = (
        build_resnet18(weights, 64, 10, seed) for weights, seed in ((None, 1), (None, 1), (None, 2))
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.fc.weight, other.fc.weight)
    assert not torch.equal(first.layer4[0].conv1.weight, other.layer4[0].conv1.weight)
    assert all(torch.equal(a, b) for a, b in zip(first_backbone.parameters(), other_backbone.parameters(), strict=True))
    _, given = build_resnet18(state_dict, 64, 10, seed=1)
    assert torch.equal(given.layer4[0].conv1.weight, state_dict["layer4.0.conv1.weight"])


@pytest.mark.parametrize("side", [32, 40])
def test_resizing_is_that_of_torchvision(side: int) -> None:
    images = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floats = images.to(torch.float32) / 255
    # On floats it is the same function; on bytes torchvision rounds after rows and after columns: a byte at most.
    torch.testing.assert_close(
        resize(floats, (224, 224)), v2.Resize((224, 224), antialias=True)(floats), rtol=0, atol=1e-6
    )
    rounded = v2.Resize((224, 224), antialias=True)(images).to(torch.float32) / 255
    assert (resize(floats, (224, 224)) - rounded).abs().max() <= 1.001 / 255


def test_the_backbone_resizes_first(state_dict: dict[str, torch.Tensor]) -> None:
    backbone, _ = build_resnet18(state_dict, 64, 10, seed=0)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), backbone(resize(images, (64, 64))))


def test_the_digest_covers_every_weight_and_statistic(state_dict: dict[str, torch.Tensor]) -> None:
    backbone, _ = build_resnet18(state_dict, 64, 10, seed=0)
    digest = backbone.digest()
    assert build_resnet18(state_dict, 64, 10, seed=1)[0].digest() == digest
    assert build_resnet18(None, 64, 10, seed=0)[0].digest() != digest
    for name in ("conv1.weight", "layer3.1.bn2.running_var"):
        changed = {**state_dict, name: state_dict[name].clone()}
        changed[name].view(-1)[-1] += 1e-3
        assert build_resnet18(changed, 64, 10, seed=0)[0].digest() != digest
