"""Counts parameters, proves weights unmoved, and counts the memory of a training step."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MIB = 2**20


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model has and how many of them training changes."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """The trained part of all parameters, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({self.share:.2%})"


def count_parameters(*modules: nn.Module) -> ParameterCount:
    """Count the parameters of one or several modules, each tensor once.

    Weights that bitsandbytes packed to 4 bits count with their true number, not with their bytes.
    """
    seen: dict[int, nn.Parameter] = {id(p): p for module in modules for p in module.parameters()}
    return ParameterCount(
        trainable=sum(true_size(p) for p in seen.values() if p.requires_grad),
        total=sum(true_size(p) for p in seen.values()),
    )


def quant_state(parameter: nn.Parameter | None) -> Any:
    """What bitsandbytes keeps beside a weight that it packed to 4 bits; None for any other parameter."""
    return getattr(parameter, "quant_state", None)


def true_size(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for; packed to 4 bits, `numel` is about half of them."""
    state = quant_state(parameter)
    return state.shape.numel() if state is not None else parameter.numel()


def quantization_constants(parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """The tensors that a 4-bit parameter needs to be read: scales, their scales, their mean, the code tables."""
    state = quant_state(parameter)
    if state is None:
        return {}
    found = {"absmax": state.absmax, "code": state.code, "offset": state.offset}
    if state.state2 is not None:
        found |= {"absmax2": state.state2.absmax, "code2": state.state2.code}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def fingerprint(*modules: nn.Module, only_frozen: bool = False) -> str:
    """SHA-256 over names, shapes and bytes of all parameters (or only of those that are frozen).

    Two equal fingerprints prove that not one bit of these weights has changed in between.
    """
    return hash_parameters(
        (name, parameter)
        for module in modules
        for name, parameter in module.named_parameters()
        if not (only_frozen and parameter.requires_grad)
    )


def hash_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> str:
    """SHA-256 over the name, shape, type and bytes of each parameter, in the order given.

    A 4-bit parameter counts with its constants, and by its bytes: FSDP needs them stored as numbers of
    another type. Beside such, the type of the others is left out: bitsandbytes and PEFT store biases and
    norms in 16 bits or 32 as they go, with the same values.
    """
    parameters = list(named)
    constants = (
        (f"{name}.{part}", tensor) for name, p in parameters for part, tensor in quantization_constants(p).items()
    )
    quantized = any(quant_state(p) is not None for _, p in parameters)
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(parameters, constants):
        if quant_state(tensor) is not None:
            tensor = tensor.detach().contiguous().view(torch.uint8).reshape(-1, 1)
        elif quantized and tensor.is_floating_point():
            tensor = tensor.float()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def training_memory(
    model: nn.Module,
    compute_loss: Callable[[], torch.Tensor],
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
) -> dict[str, float]:
    """Take one training step with a learning rate of zero and return what it keeps, in MiB, by part.

    Args:
        model: with or without frozen parameters; its weights and its mode stay as they are.
        compute_loss: the forward pass of one batch; returns the loss, a scalar.
        optimizer: the class of the optimiser.

    Returns "weights", "gradients", "optimiser state", and "activations": every tensor that the
    forward pass kept for the backward pass and that is no weight. Bytes of tensors, counted once
    each and not sampled, so they are the same on every device. The constants of 4-bit weights count
    as weights; what gradient checkpointing computes again on the way back is not in it.
    """
    constants = (c for p in model.parameters() for c in quantization_constants(p).values())
    stored = (t.untyped_storage() for t in (*model.parameters(), *constants))
    weights = {storage.data_ptr(): storage.nbytes() for storage in stored}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = model.training
    model.train()
    with torch.random.fork_rng():  # dropout draws numbers
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = compute_loss()
        loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    stepped = optimizer(trained, lr=0.0, weight_decay=0.0)
    stepped.step()
    states = (v.untyped_storage() for s in stepped.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    state = {storage.data_ptr(): storage.nbytes() for storage in states}  # 8-bit states share a table
    stepped.zero_grad()
    model.train(training)
    parts = {
        "weights": sum(weights.values()),
        "gradients": gradients,
        "optimiser state": sum(state.values()),
        "activations": sum(kept.values()),
    }
    return {name: size / MIB for name, size in parts.items()}
