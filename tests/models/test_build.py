import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from cnn_jobs.models.build import PixelModel, UniformDropout, build_model
from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform
from cnn_jobs.tasks import TASKS, get_task

IMAGE = (3, 32, 32)
SMALL = ConvNet(blocks=(ConvBlock(filters=4, kernel=3, padding=1, batch_norm=True),), hidden=8, dropout=0.4)

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_the_same_seed_gives_the_same_weights_byte_for_byte() -> None:
    first = weights(build_model(SMALL, IMAGE, 10, seed=7))
    torch.rand(100)  # where torch's own generator stands does not matter
    assert weights(build_model(SMALL, IMAGE, 10, seed=7)) == first


def test_another_seed_gives_other_weights_in_every_layer() -> None:
    first, second = weights(build_model(SMALL, IMAGE, 10, seed=7)), weights(build_model(SMALL, IMAGE, 10, seed=8))
    learned = [name for name in first if name.startswith(("conv", "linear"))]
    assert len(learned) == 6
    assert all(first[name] != second[name] for name in learned)


def test_building_leaves_torchs_own_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    build_model(SMALL, IMAGE, 10, seed=7)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_of_a_recipe_is_one_for_torch(seed: int) -> None:
    build_model(SMALL, IMAGE, 10, seed=seed)


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
    own = {
        "WinogradConv2d": "Conv2d",
        "LateBiasConv2d": "Conv2d",
        "BiasMaxPool2d": "MaxPool2d",
        "UniformDropout": "Dropout",
    }
    names = [own.get(type(module).__name__, type(module).__name__) for module in model]
    assert names == [*block * 3, "Flatten", *head]
    assert [module.p for module in model if isinstance(module, nn.Dropout)] == [0.4] * head.count("Dropout")


def relu_and_pool_swapped(model: nn.Sequential) -> nn.Sequential:
    """A copy with ReLU and pooling of every block in the other order, its weights its own."""
    modules = list(copy.deepcopy(model).named_children())
    for place in range(len(modules) - 1):
        first, second = modules[place][1], modules[place + 1][1]
        if {type(first), type(second)} in ({nn.ReLU, nn.MaxPool2d}, {nn.ReLU, nn.AvgPool2d}):
            modules[place], modules[place + 1] = modules[place + 1], modules[place]
    swapped = nn.Sequential(OrderedDict(modules))
    assert [name for name, _ in swapped.named_children()] != [name for name, _ in model.named_children()]
    return swapped


def outputs_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of one training step on fixed pictures; dropout draws the same numbers for every model."""
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
    # Its bias would be added behind the ReLU.
    model.conv1.__class__, model.pool1.__class__ = nn.Conv2d, nn.MaxPool2d
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


def test_a_pixel_model_normalises_by_itself() -> None:
    transform = InputTransform(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = torch.rand(2, 3, 4, 5)
    seen = PixelModel(nn.Identity(), transform)(pixels)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        torch.testing.assert_close(seen[:, channel], (pixels[:, channel] - mean) / std)


def test_a_pixel_model_answers_as_its_network_does_on_normalised_pixels() -> None:
    network = build_model(SMALL, IMAGE, 10, seed=0).eval()
    model = PixelModel(network, InputTransform()).eval()
    pixels = torch.rand(2, *IMAGE)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), network((pixels - 0.5) / 0.25))
    assert {"mean", "std"} <= set(model.state_dict())
    assert not [name for name, _ in model.named_parameters() if not name.startswith("network.")]


def test_dropout_drops_its_share_scales_the_rest_and_is_torchs_in_evaluation() -> None:
    layer = UniformDropout(0.4)
    values = torch.ones(400, 500, requires_grad=True)
    torch.manual_seed(6)
    dropped = layer(values)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    share = float((dropped == 0).double().mean())
    assert abs(share - 0.4) < 5 * (0.4 * 0.6 / values.numel()) ** 0.5  # five standard deviations
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())
    torch.manual_seed(6)
    assert torch.equal(layer(values), dropped)
    assert torch.equal(layer.eval()(values), values)
