"""Saves adapters (LoRA and prompts) with what they were trained on, and refuses those that do not fit, with the reason.

PEFT loads an adapter that was trained on another model of the same shape, one with NaN weights, and
one with keys that fit nowhere, without a word. Here each of these is an error.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .errors import AdapterError, ParameterError
from .measuring import hash_parameters, quant_state, true_size
from .models import positions_of

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

# PEFT is imported where it is needed: it imports bitsandbytes, after which `accelerate` starts no processes.

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINED_ON = "trained_on.json"  # ours: fingerprint, type and size of the base, and the labels


def check_lora(model: nn.Module, config: LoraConfig) -> None:
    """Refuse a LoRA configuration that cannot work with this model, before PEFT changes the model.

    PEFT complains only when not one target is found, and takes any rank and any alpha.

    Raises:
        ParameterError: rank below 1 or above the smaller side of a target matrix, alpha not above 0,
            a target or a module to save that the model does not have, a task type that does not fit.
    """
    if not isinstance(config.r, int) or config.r < 1:
        raise ParameterError(f"r={config.r!r}: expected a whole number from 1. Usual ranks are 4 to 64.")
    if not config.lora_alpha > 0:
        raise ParameterError(
            f"lora_alpha={config.lora_alpha!r}: the update is multiplied by alpha / r, so nothing would be learned. "
            f"Use r or twice r."
        )
    expected = task_type_of(model)
    if config.task_type != expected:
        raise ParameterError(
            f"task_type={config.task_type!r}: this {type(model).__name__} needs {expected!r}. Say so in LoraConfig."
        )
    modules = {  # under the names they have without an adapter
        re.sub(r"\.(base_layer|original_module)$", "", name): module
        for name, module in model.named_modules()
        if not re.search(r"\.(lora_\w+|modules_to_save)(\.|$)", name)
    }
    matrices = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}

    def find(option: str, name: str, pattern: str = "") -> list[str]:
        pattern = pattern or rf"(.*\.)?{re.escape(name)}"
        if found := [module for module in modules if re.fullmatch(pattern, module)]:
            return found
        offered = ", ".join(sorted({name.rpartition(".")[2] for name in matrices}))
        raise ParameterError(f"{option}: this model has no module {name!r}. Linear layers here: {offered}.")

    wanted = config.target_modules or []
    if wanted == "all-linear":
        found = list(matrices)
    elif isinstance(wanted, str):
        found = find("target_modules", wanted, wanted)
    else:
        found = [module for name in sorted(wanted) for module in find("target_modules", name)]
    for name in config.modules_to_save or []:
        find("modules_to_save", name)
    for name in found:
        if name not in matrices:
            continue  # an embedding, which LoRA can adapt as well; PEFT refuses what it cannot adapt
        module = matrices[name]
        shape = module.weight.shape if isinstance(module, Conv1D) else (module.out_features, module.in_features)
        if config.r > min(shape):  # not the shape of the weight: in 4 bits that is a packed column
            raise ParameterError(
                f"r={config.r}: {name} is a matrix of {' x '.join(map(str, shape))}, so no update of it has a rank "
                f"above {min(shape)}. Use a smaller r."
            )


def check_prompt(model: nn.Module, length: int, *, longest_text: int = 0, start_tokens: int = 0) -> None:
    """Refuse a learned prompt or prefix that cannot work with this model.

    PEFT takes a length of zero, cuts a start text that is too long in silence, and leaves it to the
    first long text to run past the last position.

    Args:
        model: the model that reads the prompt, or its configuration.
        length: the number of learned vectors.
        longest_text: how many tokens the longest text has that will follow the prompt.
        start_tokens: how many tokens the words have that the prompt starts from.

    Raises:
        ParameterError: a length below 1; prompt and text together longer than the model's positions;
            a start that is longer than the prompt.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ParameterError(f"length={length!r}: expected a whole number from 1. Usual prompts have 5 to 100 vectors.")
    config = getattr(model, "config", model)
    positions = positions_of(config)
    if positions is not None and length + longest_text > positions:
        raise ParameterError(
            f"length={length}: with texts of up to {longest_text} tokens that is {length + longest_text}, and this "
            f"{config.model_type} model has {positions} positions. Use a shorter prompt, or cut the texts to "
            f"{max(positions - length, 0)} tokens."
        )
    if start_tokens > length:
        raise ParameterError(
            f"length={length}: the words to start from have {start_tokens} tokens, more than the prompt. "
            f"Use a length of at least {start_tokens}, or fewer words."
        )


def task_type_of(model: nn.Module, config: PeftConfig | None = None) -> str | None:
    """PEFT's task type for this model and kind of adapter.

    "CAUSAL_LM" if the model generates text; else None for LoRA and "FEATURE_EXTRACTION" for a prompt,
    which PEFT puts around the backbone.
    """
    if getattr(model, "can_generate", bool)():
        return "CAUSAL_LM"
    return "FEATURE_EXTRACTION" if config is not None and config.is_prompt_learning else None


def base_fingerprint(model: nn.Module, *, without: Iterable[str] = ()) -> str:
    """SHA-256 of the weights below an adapter: the same with and without the adapter attached.

    Args:
        model: a model or a `PeftModel` around it.
        without: names of modules that the adapter brings along itself, such as a head.
    """
    return hash_parameters(_base_parameters(model, without))


def _base_parameters(model: nn.Module, without: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    prompts = hasattr(model, "get_base_model") and model.active_peft_config.is_prompt_learning
    wrapped_as = "base_model." if prompts else "base_model.model."
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name or name.startswith("prompt_encoder."):
            continue
        plain = name.removeprefix(wrapped_as).replace(".base_layer.", ".").replace(".original_module.", ".")
        if not set(plain.split(".")) & set(without):
            yield plain, parameter


def _about(model: nn.Module, config: PeftConfig) -> dict[str, Any]:
    """What an adapter was trained on: the base without what the adapter carries itself, such as a head."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = dict(_base_parameters(model, getattr(config, "modules_to_save", None) or ()))
    states = [state for p in parameters.values() if (state := quant_state(p)) is not None]
    dtypes = {f"{state.quant_type}{' with double quantisation' * state.nested}" for state in states}
    return {
        "base_fingerprint": hash_parameters(parameters.items()),
        "base_dtypes": sorted(dtypes or {str(p.dtype).removeprefix("torch.") for p in parameters.values()}),
        "base_parameters": sum(true_size(p) for p in parameters.values()),
        "labels": getattr(base, "labels", None),
    }


def save_adapter(model: PeftModel, folder: str | Path, *, name: str = "default") -> Path:
    """Save one adapter of a PEFT model, LoRA or a learned prompt: configuration, weights (a head in
    `modules_to_save` included), and what it was trained on.

    The folder appears complete or not at all: it is written under another name and then renamed. An
    older one of the same name is replaced.

    Raises:
        ParameterError: the model has no adapter of this name.
        AdapterError: the base was changed when the adapter was made (PiSSA and the like), so that
            the adapter would not fit the base that others load.
    """
    if name not in model.peft_config:
        raise ParameterError(f"name={name!r}: this model has the adapters {', '.join(model.peft_config)}.")
    config = model.peft_config[name]
    start = getattr(config, "init_lora_weights", True)
    if not isinstance(start, bool) and start not in ("gaussian", "orthogonal"):
        raise AdapterError(
            f"init_lora_weights={start!r} moved a part of the base into the adapter, so it fits no "
            f"base but this one. Convert it with path_initial_model_for_weight_conversion, or merge and save all."
        )
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        # "auto" would ask the Hub whether the vocabulary was resized.
        model.save_pretrained(f"{draft}/new", selected_adapters=[name], save_embedding_layers=False)
        made = Path(draft, "new", "" if name == "default" else name)
        text = json.dumps(_about(model, config), indent=1)
        (made / TRAINED_ON).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, f"{draft}/old")
        os.replace(made, folder)
    return folder


def load_adapter(model: nn.Module, folder: str | Path, *, name: str = "default", other_base: bool = False) -> PeftModel:
    """Attach a saved adapter to its base; a second one goes beside the first, to be chosen with `set_adapter`.

    Args:
        model: the base, or the `PeftModel` that an earlier call returned.
        folder: what `save_adapter` wrote.
        name: under which name to attach it.
        other_base: attach it to another base of the same size on purpose, such as the original of a
            quantised one. The answers will differ; measure by how much.

    Returns the `PeftModel`, in evaluation mode, with this adapter active. The base keeps its weights
    and, if the adapter is refused, its form.

    Raises:
        AdapterError: a file is missing or damaged; the adapter was trained on another base (also one
            of the same shape), for other labels or another kind of task; weights are missing, left
            over, of another shape, or not finite.
        ParameterError: the name is taken.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(folder)
    config, about, tensors = _read(folder)
    attached = hasattr(model, "get_base_model")
    if attached and name in model.peft_config:
        raise ParameterError(f"name={name!r}: an adapter of this name is attached already. Choose another name.")
    base = model.get_base_model() if attached else model
    other = model.active_peft_config.peft_type if attached else config.peft_type
    if other != config.peft_type:
        raise AdapterError(
            f"{folder / CONFIG}: peft_type is {config.peft_type.value}, the adapter attached already is of type "
            f"{other.value}. Load adapters of different types into separate models."
        )
    here = _about(model, config) | {"task_type": task_type_of(base, config)}
    _check_base(folder, here, about | {"task_type": config.task_type}, other_base)
    try:
        if config.is_prompt_learning:
            check_prompt(base, config.num_virtual_tokens)
        else:
            check_lora(base, config)
    except ParameterError as error:
        raise AdapterError(f"{folder / CONFIG}: {error}") from None
    config.inference_mode = True
    if attached:
        model.add_adapter(name, config)
    wrapped = model if attached else get_peft_model(model, config, adapter_name=name)
    own = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    if fault := _fault(tensors, own):
        if attached:
            wrapped.delete_adapter(name)
        elif not config.is_prompt_learning:  # a prompt leaves the base as it is
            wrapped.unload()
        raise AdapterError(f"{folder / WEIGHTS}: {fault}")
    set_peft_model_state_dict(wrapped, tensors, adapter_name=name)
    wrapped.set_adapter(name)
    wrapped.requires_grad_(False)
    return wrapped.eval()


def _read(folder: Path) -> tuple[PeftConfig, dict, dict[str, torch.Tensor]]:
    from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    for file in (CONFIG, WEIGHTS, TRAINED_ON):
        if not (folder / file).is_file():
            raise AdapterError(f"{folder / file}: no such file. An adapter is a folder that save_adapter wrote.")
    file = CONFIG
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an unknown key is only a warning
            config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig | PromptTuningConfig | PrefixTuningConfig | PromptEncoderConfig):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise ValueError(f"peft_type is {kind}, expected LORA, PROMPT_TUNING, PREFIX_TUNING or P_TUNING")
        file = TRAINED_ON
        about = json.loads((folder / file).read_text(encoding="utf-8"))
        _ = about["labels"], len(about["base_fingerprint"]), int(about["base_parameters"]), list(about["base_dtypes"])
        file = WEIGHTS
        return config, about, load_file(folder / file)
    except (ValueError, KeyError, TypeError, Warning, SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"{folder / file}: damaged, cut short, or not one of ours ({reason}). Copy the adapter again."
        ) from None


def _check_base(folder: Path, here: dict, about: dict, other_base: bool) -> None:
    for key, said, remedy in (
        ("task_type", "a model of task_type {!r}", "Load the kind of model that the adapter was trained for."),
        ("base_parameters", "a base of {:,} parameters", "Load the model that the adapter was trained on."),
        ("base_dtypes", "{} weights", "Load the base in that type, or say other_base=True if you mean it."),
        ("base_fingerprint", "weights {:.12}", "This is another base of the same shape: load the one of its training."),
        ("labels", "the labels {}", "Give the same labels in the same order."),
    ):
        if here[key] != about[key] and not (other_base and key in ("base_dtypes", "base_fingerprint")):
            was, now = (said.format(" and ".join(v) if key == "base_dtypes" else v) for v in (about[key], here[key]))
            raise AdapterError(f"{folder}: trained on {was}, here: {now}. {remedy}")


def _fault(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """What is wrong with the tensors of an adapter, and what to do about it; "" if nothing is."""
    if missing := sorted(expected.keys() - found.keys()):
        return (
            f"lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}. Save all that was trained, the "
            f"head included (save_adapter does)."
        )
    if extra := sorted(found.keys() - expected.keys()):
        return f"has {len(extra)} tensors that fit nowhere, such as {extra[0]}. {CONFIG} belongs to another adapter."
    for key, tensor in found.items():
        shape, needed = tuple(tensor.shape), tuple(expected[key].shape)
        if shape != needed:
            return f"{key} has the shape {shape}, expected {needed}. {CONFIG} belongs to another adapter."
        if not torch.isfinite(tensor).all():
            return f"{key} holds values that are not finite: its training diverged. Train with a smaller learning rate."
    return ""
