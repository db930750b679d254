"""One process of a group. Two real processes: tests/integration/test_distributed.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cnn_jobs.training.process_group import DistributedGroup, ProcessGroup, backend_of, without_sync
from tests.helpers.training import Experiment


def member(rank: int, size: int) -> DistributedGroup:
    """A process without a connection."""
    group = DistributedGroup.__new__(DistributedGroup)
    group.rank, group.size, group._device = rank, size, torch.device("cpu")
    return group


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_parts_of_a_batch_are_equal_and_complete(size: int) -> None:
    batch = torch.randperm(12)
    parts = [member(rank, size).part(batch) for rank in range(size)]
    assert torch.equal(torch.cat(parts), batch)
    assert {len(part) for part in parts} == {12 // size}


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_shares_of_a_validation_have_every_image_once(size: int, experiment: Experiment) -> None:
    validation = experiment.data().validation
    shares = [member(rank, size).share(validation) for rank in range(size)]
    assert torch.equal(torch.cat([share.indices for share in shares]), validation.indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_dropout_depends_only_on_process_and_step() -> None:
    drawn = {}
    for rank in (0, 1):
        for step in (0, 1):
            member(rank, 2).begin_step(7, step)
            drawn[rank, step] = torch.rand(4)
    assert len({tuple(each.tolist()) for each in drawn.values()}) == 4
    member(1, 2).begin_step(7, 1)
    assert torch.equal(torch.rand(4), drawn[1, 1])


def test_single_process_shares_nothing(experiment: Experiment) -> None:
    group, before = ProcessGroup(), torch.get_rng_state()
    batch, loss = torch.arange(4), torch.tensor(1.0)
    assert group.part(batch) is batch
    assert group.share(experiment.data().validation) is not None
    group.begin_step(0, 0)
    assert group.reduce(nn.Linear(1, 1), loss) is loss
    assert (group.agree_to_stop(True), group.agree_to_stop(False)) == (True, False)
    assert group.total(None, 3) is None
    torch.set_rng_state(before)


def test_model_without_sync_is_the_same_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4, eps=0.1), nn.ReLU()))
    model(torch.randn(2, 3, 8, 8))
    before = copy.deepcopy(model)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    weight = synced[1].weight
    plain = without_sync(synced)
    assert [type(each) for each in plain.modules()] == [type(each) for each in before.modules()]
    assert plain[1].weight is weight  # the optimiser has this tensor
    assert plain[2][0].eps == 0.1
    assert list(plain.state_dict()) == list(before.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(plain.eval()(images), before.eval()(images))


def test_backend_of_a_device() -> None:
    assert (backend_of(torch.device("cpu")), backend_of(torch.device("cuda"))) == ("gloo", "nccl")
