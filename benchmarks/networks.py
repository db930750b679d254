"""A task's network as it is usually written, and a check that it computes the same function as ours."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from cnn_jobs.networks.spec import ConvNet


def usual_network(spec: ConvNet, like: nn.Module) -> nn.Sequential:
    """``spec`` in the order of the report's table, ReLU *before* the pooling, with a copy of the weights of ``like``.

    Default memory format and torch's convolutions; the modules have the names of ``cnn_jobs.models.build``.
    """
    weights = like.state_dict()
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    channels = weights["conv1.weight"].shape[1]
    for number, block in enumerate(spec.blocks, start=1):
        modules[f"conv{number}"] = nn.Conv2d(channels, block.filters, block.kernel, block.stride, block.padding)
        modules[f"relu{number}"] = nn.ReLU()
        pool = nn.MaxPool2d if block.pool.kind == "max" else nn.AvgPool2d
        modules[f"pool{number}"] = pool(block.pool.kernel, block.pool.stride)
        if block.batch_norm:
            modules[f"norm{number}"] = nn.BatchNorm2d(block.filters)
        channels = block.filters
    modules["flatten"] = nn.Flatten()
    number = len(spec.blocks) + 1
    for position in (number, number + 1):
        if spec.dropout:
            modules[f"dropout{position}"] = nn.Dropout(spec.dropout)
        outputs, inputs = weights[f"linear{position}.weight"].shape
        modules[f"linear{position}"] = nn.Linear(inputs, outputs)
        if position == number:
            modules[f"relu{position}"] = nn.ReLU()
    network = nn.Sequential(modules)
    network.load_state_dict(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    )
    return network


def assert_same_function(ours: nn.Module, usual: nn.Module, pixels: torch.Tensor) -> None:
    """Raises ``AssertionError`` if their logits of ``pixels`` (N, 3, H, W) differ.

    In training mode, in which BatchNorm uses the statistics of the batch, but without dropout, which is random.
    Neither model is changed.
    """
    logits = []
    for model in (ours, usual):
        model = copy.deepcopy(model).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        with torch.no_grad():
            logits.append(model(pixels))
    difference = float((logits[0] - logits[1]).abs().max())
    assert torch.allclose(*logits, rtol=1e-4, atol=1e-4), f"the networks' logits differ by up to {difference:.2g}"
