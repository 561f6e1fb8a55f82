"""Chooses the processor and the precision, and says why."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version

import torch

from .environment import where
from .errors import DeviceError, ParameterError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Machine:
    """What the notebooks run on. `precision` is the type for matrix products; weights stay float32."""

    device: str
    precision: torch.dtype
    reason: str

    def __str__(self) -> str:
        from .hub import ENCODER, source_of

        shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
        facts = [f"{where()}: Python {platform.python_version()}, {shown}"]
        facts += [f"{self.device}, {str(self.precision).removeprefix('torch.')} ({self.reason})"]
        facts += [os.environ.get("TUTORIAL_CARD", ""), f"models: {source_of(ENCODER)}"]
        return " | ".join(filter(None, facts))

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which matrix products run in `precision`."""
        return torch.autocast(self.device, dtype=self.precision, enabled=self.precision != torch.float32)


def choose_machine(*, device: str = "auto", precision: str = "auto") -> Machine:
    """Choose device and precision for this machine; printed, the answer is one line with the reasons.

    Args:
        device: "auto" (CUDA where it works, else the CPU), "cpu", "cuda" or "mps".
        precision: "auto" (bfloat16 where the processor computes in it, else float32), or one of
            "float32", "bfloat16", "float16".

    Raises:
        DeviceError: the device is not there, cannot run the installed PyTorch, or lacks the precision.
        ParameterError: an unknown name.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ParameterError(f"device={device!r}: expected auto, cpu, cuda or mps.")
    if precision not in PRECISIONS:
        raise ParameterError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}.")
    fault = cuda_fault()
    if device == "cuda" and fault:
        raise DeviceError(f"device='cuda': {fault} Use device='cpu' or 'auto'.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device='mps': this machine or this PyTorch has no Apple GPU. Use device='cpu' or 'auto'.")
    chosen = device if device != "auto" else ("cpu" if fault else "cuda")
    has_bf16, why = bfloat16(chosen)
    if precision == "bfloat16" and chosen == "cuda" and not has_bf16:
        raise DeviceError(f"precision='bfloat16': {why}. Use precision='float16' or 'auto'.")
    if precision != "auto":
        why = f"{precision} as asked"
    dtype = getattr(torch, precision) if precision != "auto" else (torch.bfloat16 if has_bf16 else torch.float32)
    name = {"cpu": f"{torch.get_num_threads()} threads", "mps": "Apple GPU"}.get(chosen) or torch.cuda.get_device_name()
    reason = fault if device == "auto" and chosen == "cpu" else name
    return Machine(chosen, dtype, f"{reason.rstrip('.')}; {why}")


def cuda_fault() -> str:
    """Why CUDA cannot be used here, or "" if it can.

    `torch.cuda.is_available()` is True on a card for which the installed PyTorch has no kernels
    (Kaggle's P100), and every computation on it fails.
    """
    if not torch.cuda.is_available():
        return "No CUDA card is visible."
    if torch.version.hip:  # an AMD card: the list holds names such as gfx90a
        return ""
    major, minor = torch.cuda.get_device_capability()
    if not has_kernels(major, minor):
        built = ", ".join(torch.cuda.get_arch_list())
        return f"{torch.cuda.get_device_name()} (sm_{major}{minor}) has no kernels in this PyTorch ({built})."
    return ""


def has_kernels(major: int, minor: int) -> bool:
    """Whether the installed PyTorch can compute on cards of this compute capability."""
    built = (re.fullmatch(r"sm_(\d+)(\d)[af]?", arch) for arch in torch.cuda.get_arch_list())
    # A card runs kernels built for its own generation with the same or a lower minor number.
    return any(int(arch[1]) == major and int(arch[2]) <= minor for arch in built if arch)


def bfloat16(device: str) -> tuple[bool, str]:
    """Whether "cpu", "cuda" or "mps" computes in bfloat16 here, and why."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()  # is_bf16_supported() also counts slow emulation
        return major >= 8, f"compute capability {major}.{minor}, bfloat16 from 8.0"
    if device == "mps":
        return False, "float32 unless asked on Apple GPUs"
    # Private names until torch offers a public one; without them the answer is float32, which is always right.
    checks = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    fast = sorted(name for name, check in checks.items() if getattr(torch.cpu, check, lambda: False)())
    return bool(fast), f"the CPU has {', '.join(fast)}" if fast else "the CPU has no bfloat16 instructions"
