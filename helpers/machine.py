"""Chooses the processor and the precision, and says why."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

import torch

from .errors import DeviceError, ParameterError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Machine:
    """What the notebooks run on. `precision` is the type for matrix products; weights stay float32."""

    device: str
    precision: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {str(self.precision).removeprefix('torch.')} ({self.reason})"

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
    reason = fault if device == "auto" and chosen == "cpu" else _describe(chosen)
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
        major, minor = torch.cuda.get_device_capability()
        # Not is_bf16_supported(): that is True for cards that only emulate it.
        return major >= 8, f"compute capability {major}.{minor}, bfloat16 from 8.0"
    if device == "mps":
        return False, "float32 unless asked on Apple GPUs"
    fast = _cpu_features() & {"amx_bf16", "avx512_bf16"}
    return bool(fast), f"the CPU has {', '.join(sorted(fast))}" if fast else "the CPU has no bfloat16 instructions"


def _cpu_features() -> set[str]:
    # Private names until torch offers a public one; without them the answer is float32, which is always right.
    checks = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {name for name, check in checks.items() if getattr(torch.cpu, check, lambda: False)()}


def _describe(device: str) -> str:
    if device == "cuda":
        count = torch.cuda.device_count()
        return f"{torch.cuda.get_device_name()}{f', one of {count}' if count > 1 else ''}"
    return "Apple GPU" if device == "mps" else f"{torch.get_num_threads()} threads"
