"""Checks a quantisation before a model is loaded with it, and names what became 4-bit. No arithmetic is in here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from .errors import DeviceError, ModelError, ParameterError
from .machine import bfloat16, cuda_fault
from .measuring import quant_state

TYPES = ("nf4", "fp4")


def check_quantization(config: BitsAndBytesConfig, *, device: str = "cpu") -> None:
    """Refuse a quantisation that cannot work on this machine, before anything is loaded.

    Raises:
        ParameterError: neither 4 nor 8 bits, or an unknown 4-bit type.
        DeviceError: no bitsandbytes for this machine, or a card that cannot compute what is asked.
    """
    if not (config.load_in_4bit or config.load_in_8bit):
        raise ParameterError("the quantisation asks for neither load_in_4bit=True nor load_in_8bit=True. Set one.")
    if config.load_in_4bit and config.bnb_4bit_quant_type not in TYPES:
        raise ParameterError(f"bnb_4bit_quant_type={config.bnb_4bit_quant_type!r}: expected 'nf4' or 'fp4'.")
    if device.startswith("cuda"):
        if fault := cuda_fault():
            raise DeviceError(f"device={device!r}: {fault} Use device='cpu', or a notebook with another card.")
        has_bf16, why = bfloat16("cuda")
        if config.load_in_4bit and config.bnb_4bit_compute_dtype == torch.bfloat16 and not has_bf16:
            raise DeviceError(
                f"bnb_4bit_compute_dtype=torch.bfloat16: {torch.cuda.get_device_name()} has {why}. Use torch.float16."
            )
    try:  # imported here and not at the top: after it, `accelerate` starts no processes
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

        fault = "it has no library for this machine" if isinstance(lib, ErrorHandlerMockBNBNativeLibrary) else ""
    except (ImportError, OSError, RuntimeError) as error:
        fault = str(error) or type(error).__name__
    if fault:
        raise DeviceError(
            f"bitsandbytes cannot be used ({fault}; `python -m bitsandbytes` may say more). Install the wheel for this "
            f"system with `pip install --no-deps bitsandbytes`, or use LoRA without it."
        )


def check_kind(config: PreTrainedConfig) -> None:
    """Raise `ModelError` for a kind of model whose linear layers would stay as they are."""
    if config.model_type == "falcon":
        raise ModelError(
            "a model of type 'falcon' has linear layers of a class of its own, which newer versions of transformers do "
            "not quantise. Use LoRA without a quantisation, or a model such as Qwen/Qwen3-0.6B-Base."
        )


def check_not_quantized(config: PreTrainedConfig, source: str) -> None:
    """Raise `ModelError` if these weights are quantised already: quantising twice would only add error."""
    already = getattr(config, "quantization_config", None)
    if already is not None:
        given = already if isinstance(already, dict) else already.to_dict()
        raise ModelError(
            f"{source}: these weights are quantised already ({given.get('quant_method', 'unknown method')}). Give the "
            f"original model, or load this one without a quantisation."
        )


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of each layer whose weight bitsandbytes holds in 4 bits."""
    for name, module in model.named_modules():
        if quant_state(getattr(module, "weight", None)) is not None:
            yield name, module


def settle(model: nn.Module) -> None:
    """Make quantised layers compute the same in training and evaluation, and stay what they are.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 rewrites a layer's packed weights in its first
    evaluation and rounds their constants to bfloat16 for good; a layer treated so passes no
    gradient on afterwards. And every 4-bit layer rounds its bias to the compute type in its first
    forward pass. Here the first is switched off, and the second done at once.
    """
    for _, layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False
        if layer.bias is not None and layer.compute_dtype is not None:
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)
    if model.config.model_type.startswith("deberta"):
        model.register_forward_pre_hook(_refuse_16_bits)


def _refuse_16_bits(model: nn.Module, _: tuple) -> None:
    """DeBERTa fills its mask with the least number of the layers' type, 32 bits, which no 16-bit score can hold."""
    if torch.is_autocast_enabled(model.device.type):
        raise ParameterError(
            f"{torch.get_autocast_dtype(model.device.type)}: over quantised layers the mask of a "
            f"{model.config.model_type} model overflows in 16 bits. Use choose_machine(precision='float32')."
        )
