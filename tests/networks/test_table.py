import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_jobs.errors import RecipeError
from cnn_jobs.models.build import build_model, build_network, whole_network
from cnn_jobs.networks.spec import ConvBlock, ConvNet, Network, Pool, ResNet18
from cnn_jobs.networks.table import (
    COLUMNS,
    Layer,
    as_markdown,
    cells,
    describe,
    kernels_between,
    receptive_field,
    same_padding,
    total_parameters,
    window_output_size,
)
from cnn_jobs.tasks import TASKS, get_task

pytestmark = pytest.mark.usefixtures("one_thread")

Image = tuple[int, int, int]
META = torch.device("meta")  # shapes without values
SIDES = st.integers(1, 12)
KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv2D",
    nn.MaxPool2d: "MaxPool2D",
    nn.AvgPool2d: "AvgPool2D",
    nn.AdaptiveAvgPool2d: "AvgPool2D",
    nn.BatchNorm2d: "Batch normalization",
    nn.Flatten: "Flatten",
    nn.Linear: "Fully-Connected",
}
Row = tuple[str, tuple[int, ...], int]


def rows_of(layers: list[Layer]) -> list[Row]:
    """Without resizing, which torch has as a function."""
    kinds = {"Conv2D (shortcut)": "Conv2D"}
    return [
        (kinds.get(layer.kind, layer.kind), layer.output, layer.parameters)
        for layer in layers
        if layer.kind != "Resize"
    ]


def rows_in_torch(model: nn.Module, image: Image) -> list[Row]:
    """Kind, output shape and parameters of every layer that one image passes through."""
    rows: list[Row] = []

    def record(module: nn.Module, _: object, output: torch.Tensor) -> None:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        (kind,) = (name for base, name in KINDS.items() if isinstance(module, base))
        rows.append((kind, tuple(output.shape[1:]), parameters))

    for module in model.modules():
        if isinstance(module, tuple(KINDS)):
            module.register_forward_hook(record)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, *image))
    return rows


def flops(model: nn.Module, image: Image) -> int:
    """Of one image, in double precision: there every layer is torch's plain one."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval().double()(torch.zeros(1, *image, dtype=torch.double))
    return int(counter.get_total_flops())


def whole(network: Network, image: Image, classes: int) -> nn.Module:
    return whole_network(*build_network(network, image, classes, seed=0))


@pytest.mark.parametrize(("image", "classes"), [((3, 32, 32), 10), ((3, 28, 41), 2), ((1, 28, 28), 7)])
@pytest.mark.parametrize("name", TASKS)
def test_table_matches_the_torch_module(name: str, image: Image, classes: int) -> None:
    network = get_task(name).network
    if isinstance(network, ResNet18) and image[0] != 3:
        for call in (describe, whole):
            with pytest.raises(RecipeError, match="images have 1 channels, the network takes 3"):
                call(network, image, classes)
        return
    layers = describe(network, image, classes)
    model = whole(network, image, classes)
    assert rows_of(layers) == rows_in_torch(model, image)
    assert total_parameters(layers) == sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert total_parameters(layers, trained=True) == trained


@st.composite
def networks(draw: st.DrawFn) -> ConvNet:
    blocks = st.builds(
        ConvBlock,
        filters=st.integers(1, 4),
        kernel=st.integers(1, 5),
        padding=st.integers(0, 2),
        stride=st.integers(1, 2),
        pool=st.builds(
            Pool, kernel=st.integers(1, 4), stride=st.integers(1, 3), kind=st.sampled_from(["max", "average"])
        ),
        batch_norm=st.booleans(),
    )
    return ConvNet(
        blocks=tuple(draw(st.lists(blocks, min_size=1, max_size=3))),
        hidden=draw(st.integers(1, 9)),
        dropout=draw(st.sampled_from([0.0, 0.4])),
    )


@settings(max_examples=25)
@given(network=networks(), height=st.integers(1, 20), width=st.integers(1, 20), classes=st.integers(1, 5))
def test_any_network_is_described_as_torch_builds_it_or_rejected(
    network: ConvNet, height: int, width: int, classes: int
) -> None:
    image = (3, height, width)
    try:
        layers = describe(network, image, classes)
    except RecipeError:
        with pytest.raises(RecipeError):
            build_model(network, image, classes, seed=0)
        return
    model = build_model(network, image, classes, seed=0)
    assert rows_of(layers) == rows_in_torch(model, image)
    assert 2 * sum(layer.macs for layer in layers) == flops(model, image)


@pytest.mark.parametrize(("name", "side"), [("task2", 7), ("task3-arch1", 11), ("task3e", 11)])
def test_images_too_small_for_the_network_are_rejected(name: str, side: int) -> None:
    network = get_task(name).network
    with pytest.raises(RecipeError, match=r"kernel \d is larger than its input of \d pixels") as caught:
        describe(network, (3, side, 64))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError):
        describe(network, (3, 64, side))
    with pytest.raises(RecipeError):
        build_model(network, (3, side, side), 10, seed=0)
    assert describe(network, (3, side + 1, side + 1))


def test_layers_without_output_are_rejected() -> None:
    block = ConvBlock(filters=0, kernel=3, padding=1)
    with pytest.raises(RecipeError, match="Conv2D has an output of 0x32x32: every side must be at least 1"):
        describe(ConvNet(blocks=(block,)))
    for network, classes in ((ConvNet(blocks=(), hidden=0), 10), (ConvNet(blocks=()), -1)):
        with pytest.raises(RecipeError, match="Fully-Connected has an output of"):
            describe(network, classes=classes)


def test_table_of_task3e_row_by_row() -> None:
    assert [cells(layer) for layer in describe(get_task("task3e").network)] == [
        ("1", "Conv2D", "64", "F=3, p=1, s=1", "ReLU", "64x32x32", "1,792", "3 px", "1.77 M", "256 KiB"),
        ("1", "MaxPool2D", "-", "F=4, s=2", "-", "64x15x15", "-", "6 px", "-", "56.2 KiB"),
        ("", "Batch normalization", "-", "-", "-", "64x15x15", "128", "6 px", "-", "56.2 KiB"),
        ("2", "Conv2D", "128", "F=3, p=1, s=1", "ReLU", "128x15x15", "73,856", "10 px", "16.59 M", "112 KiB"),
        ("2", "MaxPool2D", "-", "F=3, s=2", "-", "128x7x7", "-", "14 px", "-", "24.5 KiB"),
        ("", "Batch normalization", "-", "-", "-", "128x7x7", "256", "14 px", "-", "24.5 KiB"),
        ("3", "Conv2D", "256", "F=3, p=1, s=1", "ReLU", "256x7x7", "295,168", "22 px", "14.45 M", "49.0 KiB"),
        ("3", "MaxPool2D", "-", "F=2, s=2", "-", "256x3x3", "-", "26 px", "-", "9.0 KiB"),
        ("", "Batch normalization", "-", "-", "-", "256x3x3", "512", "26 px", "-", "9.0 KiB"),
        ("", "Flatten", "-", "-", "-", "2304", "-", "all", "-", "9.0 KiB"),
        ("4", "Fully-Connected", "64", "dropout p=0.4", "ReLU", "64", "147,520", "all", "0.15 M", "0.2 KiB"),
        ("5", "Fully-Connected", "10", "dropout p=0.4", "Softmax (in the loss)", "10", "650", "all", "640", "0.0 KiB"),
    ]


def test_markdown_table_has_a_line_per_layer_and_the_totals() -> None:
    layers = describe(get_task("task2").network)
    lines = as_markdown(layers).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert table == [[column.title for column in COLUMNS], *([*cells(layer)] for layer in layers)]
    assert "390,410 parameters; for one image 28.80 M MACs and 288 KiB of outputs." in lines


@pytest.mark.parametrize("name", TASKS)
def test_costs_of_every_task_match_torchs_flops(name: str) -> None:
    network = get_task(name).network
    assert 2 * sum(layer.macs for layer in describe(network)) == flops(whole(network, (3, 32, 32), 10), (3, 32, 32))


@pytest.mark.parametrize("name", list(TASKS)[:3])
def test_receptive_field_of_the_last_convolution_is_what_its_gradient_reaches(name: str) -> None:
    network = get_task(name).network
    rows = [layer for layer in describe(network, (3, 96, 96)) if layer.kind == "Conv2D"]
    model = build_model(network, (3, 96, 96), 10, seed=0).eval()
    upto = nn.Sequential(*list(model)[: [n for n, _ in model.named_children()].index("conv3") + 1])
    for module in upto:
        if isinstance(module, nn.Conv2d):  # so that no path is cut by a ReLU or outweighed in a maximum
            nn.init.constant_(module.weight, 1.0)
    upto = nn.Sequential(*(nn.AvgPool2d(m.kernel_size, m.stride) if isinstance(m, nn.MaxPool2d) else m for m in upto))
    upto.double()  # plain layers of torch: no rounding outside their windows
    pixels = torch.rand(1, 3, 96, 96, dtype=torch.double, requires_grad=True)
    output = upto(pixels)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    assert pixels.grad is not None
    reached = pixels.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert int(reached[-1] - reached[0]) + 1 == rows[-1].receptive_field


# -- sizes -------------------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 70), width=st.integers(1, 70), kernel=SIDES, stride=SIDES, padding=st.integers(0, 12))
def test_size_of_a_convolution_matches_torch(height: int, width: int, kernel: int, stride: int, padding: int) -> None:
    layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, device=META)
    images = torch.empty(1, 1, height, width, device=META)
    if kernel > min(height, width) + 2 * padding:
        with pytest.raises(RuntimeError):
            layer(images)
        with pytest.raises(RecipeError):
            window_output_size(min(height, width), kernel=kernel, stride=stride, padding=padding)
    else:
        sides = [window_output_size(side, kernel=kernel, stride=stride, padding=padding) for side in (height, width)]
        assert list(layer(images).shape[2:]) == sides


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@given(size=st.integers(1, 70), kernel=SIDES, stride=SIDES)
def test_size_of_a_pooling_matches_torch(pool: type[nn.Module], size: int, kernel: int, stride: int) -> None:
    layer = pool(kernel, stride)
    images = torch.empty(1, 1, size, size, device=META)
    if kernel > size:
        with pytest.raises(RuntimeError):
            layer(images)
        with pytest.raises(RecipeError):
            window_output_size(size, kernel=kernel, stride=stride)
    else:
        assert layer(images).shape[2] == window_output_size(size, kernel=kernel, stride=stride)


@given(kernel=st.integers(1, 31), size=st.integers(1, 60))
def test_same_padding_keeps_the_size_and_does_not_exist_for_even_kernels(kernel: int, size: int) -> None:
    if kernel % 2:
        layer = nn.Conv2d(1, 1, kernel, padding=same_padding(kernel), device=META)
        assert layer(torch.empty(1, 1, size, size, device=META)).shape[2:] == (size, size)
    else:
        with pytest.raises(RecipeError, match="even"):
            same_padding(kernel)
        sizes = {window_output_size(size, kernel=kernel, stride=1, padding=padding) for padding in range(kernel, 40)}
        assert kernel > 30 or size not in sizes


@given(size=st.integers(1, 60), output=st.integers(1, 60), stride=SIDES, padding=st.integers(0, 5))
def test_kernels_between_two_sizes_match_torch(size: int, output: int, stride: int, padding: int) -> None:
    def gives(kernel: int) -> bool:
        if kernel > size + 2 * padding:
            return False
        layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, device=META)
        return bool(layer(torch.empty(1, 1, size, size, device=META)).shape[2] == output)

    expected = [kernel for kernel in range(1, size + 2 * padding + 1) if gives(kernel)]
    if expected:
        assert list(kernels_between(size, output, stride=stride, padding=padding)) == expected
    else:
        with pytest.raises(RecipeError, match="no kernel reduces"):
            kernels_between(size, output, stride=stride, padding=padding)


@given(windows=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=4))
def test_receptive_field_is_what_the_gradient_reaches(windows: list[tuple[int, int]]) -> None:
    """Along one side, behind kernels of ones, on an image without padding."""
    side = receptive_field(windows)
    pixels = torch.zeros(1, 1, side, dtype=torch.double, requires_grad=True)
    values = pixels
    for kernel, stride in windows:
        values = nn.functional.conv1d(values, torch.ones(1, 1, kernel, dtype=torch.double), stride=stride)
    assert values.shape[2] == 1  # one pixel less, and there would be none
    values.sum().backward()
    assert pixels.grad is not None
    covered = all(kernel >= stride for kernel, stride in windows)  # else it has holes
    reached = pixels.grad.flatten().nonzero().flatten()
    assert int(reached[0]) == 0
    assert int(reached[-1]) == side - 1
    assert not covered or len(reached) == side


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: window_output_size(0, kernel=1, stride=1), "size 0: must be at least 1"),
        (lambda: window_output_size(8, kernel=0, stride=1), "kernel 0: must be at least 1"),
        (lambda: window_output_size(8, kernel=3, stride=0), "stride 0: must be at least 1"),
        (lambda: window_output_size(8, kernel=3, stride=1, padding=-1), "padding -1: must be at least 0"),
        (lambda: window_output_size(4, kernel=5, stride=1), "kernel 5 is larger than its input of 4 pixels"),
        (lambda: window_output_size(2, kernel=7, stride=1, padding=2), "2 pixels with padding 2; use larger images"),
        (lambda: same_padding(0), "kernel 0: must be at least 1"),
        (lambda: kernels_between(8, 9), "no kernel reduces 8 pixels to 9"),
        (lambda: kernels_between(8, 4, stride=0), "stride 0: must be at least 1"),
        (lambda: kernels_between(8, 4, padding=-1), "padding -1: must be at least 0"),
        (lambda: kernels_between(-8, 4), "size -8: must be at least 1"),
        (lambda: receptive_field([(3, 0)]), "stride 0: must be at least 1"),
    ],
)
def test_impossible_sizes_are_rejected_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
