"""A stand-in for a CUDA card, for tests on machines without one."""

import torch


def fake_cuda(monkeypatch, capability, built, name="a card"):
    """A card of this compute capability, and a PyTorch with kernels for the `built` architectures."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
