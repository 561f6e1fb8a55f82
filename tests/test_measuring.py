"""Counts, fingerprints, and the memory of a training step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import count_parameters, fingerprint, training_memory


def test_parameters_are_counted_once_and_by_hand():
    layer = nn.Linear(10, 4)  # 44 parameters
    head = nn.Linear(4, 3)  # 15
    head.weight.requires_grad_(False)
    both = count_parameters(nn.Sequential(layer, layer), head)
    assert (both.total, both.trainable) == (59, 47)
    assert str(both) == "47 of 59 parameters are trained (79.66%)"
    packed = nn.Linear(1, 32, bias=False)  # of 4-bit weights the true number
    packed.weight.quant_state = SimpleNamespace(shape=torch.Size([8, 8]))
    assert count_parameters(packed).total == 64


def test_fingerprint_notices_one_bit_and_only_what_it_should():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    whole, frozen = fingerprint(model), fingerprint(model, only_frozen=True)
    with torch.no_grad():
        model[1].bias.add_(1e-7)
    assert fingerprint(model) != whole and fingerprint(model, only_frozen=True) == frozen
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    assert fingerprint(model, only_frozen=True) != frozen
    assert len(fingerprint(nn.Linear(2, 2).bfloat16())) == 64


def test_memory_by_part_is_counted_by_hand_and_the_weights_stay():
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4)).eval()
    model[0].requires_grad_(False)
    x = torch.randn(64, 256)
    before = fingerprint(model)
    parts = training_memory(model, lambda: model(x).sum())
    assert fingerprint(model) == before and not model.training
    mib = 2**20
    trained = 4 * (512 * 4 + 4) / mib
    assert parts["weights"] == pytest.approx(4 * (256 * 512 + 512) / mib + trained)
    assert parts["gradients"] == pytest.approx(trained)
    assert parts["optimiser state"] == pytest.approx(2 * trained + 2 * 4 / mib)  # AdamW's averages and counters
    assert parts["activations"] == pytest.approx(4 * 64 * 512 / mib)  # what the last layer multiplies


def test_what_parameters_share_in_the_optimiser_is_counted_once():
    from bitsandbytes.optim import AdamW8bit

    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))  # 4,096 numbers each: the 8-bit kind
    state = training_memory(model, lambda: model(torch.randn(2, 64)).sum(), AdamW8bit)["optimiser state"]
    bytes_of_one = 2 * (4096 + 4 * 4096 // 256)  # two averages, a 32-bit scale for 256 numbers
    assert state * 2**20 == 3 * bytes_of_one + 2 * 4 * 256, "and two tables for all"
