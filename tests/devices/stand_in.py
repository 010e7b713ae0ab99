"""The stand-in for a GPU refuses what a GPU refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from client import devices
from client.dp.noise import SystemNoise


def test_it_computes_and_comes_back(elsewhere: torch.device) -> None:
    x = torch.arange(6.0).view(2, 3).to(elsewhere)
    layer = nn.Linear(3, 2).to(elsewhere)
    loss = layer(x).square().sum()
    loss.backward()
    assert layer.weight.grad is not None
    assert {layer.weight.device, layer.weight.grad.device, loss.device} == {elsewhere}
    assert x.cpu().device == devices.CPU
    assert (x + 1).cpu().tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert devices.of(layer) == elsewhere


def test_tensors_of_two_devices_do_not_meet(elsewhere: torch.device) -> None:
    x = torch.ones(3, device=elsewhere)
    with pytest.raises(RuntimeError, match="tensors on"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="tensors on"):
        x[torch.tensor([True, False, True])]
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        x.numpy()
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2.0, 2.0, 2.0]  # a number may


def test_generators_belong_to_a_device(elsewhere: torch.device) -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=elsewhere, generator=torch.Generator())
    there = devices.generator_on(elsewhere, 1)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=there)
    assert torch.rand(3, device=elsewhere, generator=there).device == elsewhere


def test_a_sites_noise_is_added_there(elsewhere: torch.device) -> None:
    values = torch.zeros(1000, device=elsewhere)
    noisy = SystemNoise().added_to(values, 2.0)
    assert noisy.device == elsewhere
    assert float(noisy.std()) == pytest.approx(2.0, rel=0.2)
