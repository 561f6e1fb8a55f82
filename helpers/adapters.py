"""Saves adapters (LoRA and prompts) with what they were trained on, and refuses those that do not fit, with the reason.

PEFT loads an adapter that was trained on another model of the same shape, one with NaN weights, and
one with keys that fit nowhere, without a word. Here each of these is an error.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from .errors import AdapterError, ModelError, ParameterError
from .measuring import hash_parameters, quant_state, true_size
from .models import positions_of, transformer_blocks

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers import PreTrainedConfig

# PEFT is imported where it is needed: it imports bitsandbytes, after which `accelerate` starts no processes.

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINED_ON = "trained_on.json"  # ours: fingerprint, type and size of the base, and the labels
KINDS = ("LORA", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")  # what is saved and loaded here

# What families call the layers that make queries and values, or queries, keys and values in one.
QUERY_VALUE = r"(q|v|query|value)(_proj|_lin)?|\w*qkv\w*|query_key_value|c_attn|att_proj"


def query_value(model: nn.Module) -> list[str]:
    """Names, as `LoraConfig(target_modules=...)` takes them, of the layers that make queries and values.

    Where one layer makes the keys as well, as in GPT-2 and Phi-3, it is that one. `ModelError` names
    the linear layers of a block if none of them is known.
    """
    inside = {module for block in transformer_blocks(model) for module in block.modules()}
    linear = [name for name, module in model.named_modules() if module in inside and isinstance(module, nn.Linear)]
    if found := [name for name in linear if re.fullmatch(QUERY_VALUE, name.rpartition(".")[2])]:
        return found
    offered = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
    raise ModelError(
        f"a model of type {model.config.model_type!r}: no linear layer of its blocks has a name known for queries and "
        f"values. Give the names yourself as target_modules; the blocks have {offered}."
    )


def check_lora(model: nn.Module, config: LoraConfig) -> None:
    """Refuse a LoRA configuration that cannot work with this model, before PEFT changes the model.

    PEFT complains only when not one target is found, and takes any rank and any alpha.

    Raises:
        ParameterError: a rank below 1 or above the smaller side of a target matrix, an alpha not above
            0, a dropout outside 0 to 1, also in a pattern; a target, a pattern or a module to save that
            the model does not have; a task type that does not fit.
    """
    from peft.utils.other import get_pattern_key

    _check_numbers(config)
    expected = task_types_of(model, config)
    if config.task_type not in expected:
        raise ParameterError(
            f"task_type={config.task_type!r}: this {type(model).__name__} needs {expected[0]!r}. Say so in LoraConfig."
        )
    modules = {  # under the names they have without an adapter
        re.sub(r"\.(base_layer|original_module)$", "", name): module
        for name, module in model.named_modules()
        if not re.search(r"\.(lora_\w+|modules_to_save)(\.|$)", name)
    }
    matrices = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}

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
    heads = ("classifier", "score") if config.task_type in ("SEQ_CLS", "TOKEN_CLS") else ()  # PEFT adds both names
    for name in set(config.modules_to_save or []).difference(heads):
        find("modules_to_save", name)
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, option) or {}:  # PEFT passes over one that fits nowhere
            find(option, pattern, rf"(.*\.)?({pattern})")
    ranks = config.rank_pattern or {}
    for name in found:
        if name not in matrices:
            continue  # an embedding, which LoRA can adapt as well; PEFT refuses what it cannot adapt
        module, rank = matrices[name], ranks.get(get_pattern_key(ranks, name), config.r)
        shape = module.out_features, module.in_features
        if rank > min(shape):  # not the shape of the weight: in 4 bits that is a packed column
            raise ParameterError(
                f"r={rank}: {name} is a matrix of {' x '.join(map(str, shape))}, so no update of it has a rank "
                f"above {min(shape)}. Use a smaller r."
            )


def _check_numbers(config: LoraConfig) -> None:
    """Ranks, alphas and dropout; PEFT takes strings, zeros and a dropout of everything."""

    def values(name: str, pattern: str) -> Iterator[tuple[str, Any]]:
        yield name, getattr(config, name)
        yield from ((f"{pattern}[{key!r}]", value) for key, value in (getattr(config, pattern) or {}).items())

    for name, value in values("r", "rank_pattern"):
        if type(value) is not int or value < 1:
            raise ParameterError(f"{name}={value!r}: expected a whole number from 1. Usual ranks are 4 to 64.")
    for name, value in values("lora_alpha", "alpha_pattern"):
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ParameterError(
                f"{name}={value!r}: expected a number above 0. The update is multiplied by alpha / r, so with 0 "
                f"nothing would be learned. Use r or twice r."
            )
    dropout = config.lora_dropout
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ParameterError(f"lora_dropout={dropout!r}: expected a number from 0 to below 1. Usual ones are 0 to 0.1.")


def check_prompt(
    model: nn.Module, length: int, *, longest_text: int = 0, start_tokens: int = 0, prefix: bool = False
) -> None:
    """Refuse a learned prompt or prefix that cannot work with this model.

    PEFT takes a length of zero, cuts a start text that is too long in silence, and leaves it to the
    first long text to run past the last position.

    Args:
        model: the model that reads the prompt, or its configuration.
        length: the number of learned vectors.
        longest_text: how many tokens the longest text has that will follow the prompt.
        start_tokens: how many tokens the words have that the prompt starts from.
        prefix: it is a prefix, learned keys and values for each layer.

    Raises:
        ParameterError: a length below 1; prompt and text together longer than the model's positions;
            a start that is longer than the prompt; a prefix for a model that takes none.
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
    if prefix and (fault := _no_prefix(model, config)):
        raise ParameterError(
            f"prefix tuning: a {config.model_type} model {fault}. Use a soft prompt (PromptTuningConfig), or a model "
            f"such as Llama or Qwen 3."
        )


def _no_prefix(model: nn.Module, config: PreTrainedConfig) -> str:
    """Why a model takes no keys and values learned for each layer, or ""."""
    forward = inspect.signature(getattr(model, "forward", None) or (lambda past_key_values: None))
    if "past_key_values" not in forward.parameters:
        return "takes no past keys and values, which a prefix is made of"
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        return f"has layers without keys and values ({', '.join(sorted(others))})"
    return "shares one key between all heads, which PEFT's prefix does not" if getattr(config, "multi_query", 0) else ""


def prompt_shape(model: PreTrainedModel) -> dict[str, int]:
    """The sizes of a soft prompt or of P-tuning for this model: `PromptTuningConfig(..., **prompt_shape(model))`.

    PEFT looks for them in the configuration, where DistilBERT has other names for them, and takes the
    width of the layers, where the vectors of words are narrower in ELECTRA small and MobileBERT.
    """
    return {
        "token_dim": model.get_input_embeddings().embedding_dim,
        "num_layers": model.config.num_hidden_layers,
        "num_attention_heads": model.config.num_attention_heads,
    }


def task_types_of(model: nn.Module, config: PeftConfig) -> tuple[str | None, ...]:
    """PEFT's task types that fit this model and kind of adapter, the usual one first.

    PEFT passes arguments of its own to a model of most task types, which our `Classifier` does not take.
    """
    name = type(model).__name__
    if getattr(model, "can_generate", bool)():
        return ("SEQ_2_SEQ_LM",) if model.config.is_encoder_decoder else ("CAUSAL_LM",)
    free = () if config.is_prompt_learning else (None,)
    for end, task_type in (("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")):
        if name.endswith(end):
            return (task_type, *free)
    return (*free, "FEATURE_EXTRACTION") if isinstance(model, PreTrainedModel) or not free else free


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights of a model below its adapter: the same with and without one."""
    return hash_parameters(_below(model).items())


def _bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _below(model: nn.Module, config: PeftConfig | None = None) -> dict[str, torch.Tensor]:
    """The base, by the names it has without an adapter, less what such an adapter trains and carries along.

    That are modules to save, all biases, and rows of tokens.
    """
    base, found = _bare(model), {}
    own = getattr(config, "modules_to_save", None) or ()
    biases = getattr(config, "bias", "none") != "none"
    for name, parameter in base.named_parameters():
        plain = re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", name)
        plain = re.sub(r"^embed_out\.", "lm_head.", plain)  # GPT-NeoX before transformers 5.15
        carried = any(f".{module}." in f".{plain}" for module in own) or (biases and plain.endswith(".bias"))
        if not carried and not re.search(r"lora_|\.modules_to_save\.|\.trainable_tokens_", name):
            found[plain] = parameter
    rows = getattr(config, "trainable_token_indices", None) or {}
    if not isinstance(rows, dict):  # those of the input
        rows = {name: rows for name, module in base.named_modules() if module is model.get_input_embeddings()}
    for name, trained in rows.items():
        for key in [key for key in found if f".{key}".endswith(f".{name}.weight")]:
            found[key] = found[key].index_fill(0, torch.tensor(trained, device=found[key].device), 0)
    return found


def _about(model: nn.Module, base: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What an adapter over this base was trained on, as its file and its refusals say it."""
    states = [state for p in base.values() if (state := quant_state(p)) is not None]
    dtypes = {f"{state.quant_type}{' with double quantisation' * state.nested}" for state in states}
    return {
        "base_fingerprint": hash_parameters(base.items()),
        "base_dtypes": sorted(dtypes or {str(p.dtype).removeprefix("torch.") for p in base.values()}),
        "base_parameters": sum(true_size(p) for p in base.values()),
        "labels": getattr(_bare(model), "labels", None),
    }


def save_adapter(model: PeftModel, folder: str | Path, *, name: str = "default") -> Path:
    """Save one adapter of a PEFT model, LoRA or a learned prompt: configuration, weights (a head in
    `modules_to_save` included), and what it was trained on.

    The folder appears complete or not at all: it is written under another name and then renamed. An
    older one of the same name is replaced.

    Raises:
        ParameterError: the model has no adapter of this name.
        AdapterError: `load_adapter` could not put it back onto its base: another kind than LoRA and
            prompts, a base that was changed when the adapter was made (PiSSA and the like), that is
            trained as well, or into which the adapter is merged.
    """
    if name not in model.peft_config:
        raise ParameterError(f"name={name!r}: this model has the adapters {', '.join(model.peft_config)}.")
    config = model.peft_config[name]
    base = _below(model, config)
    if fault := _cannot_return(config) or _moved(model, base):
        raise AdapterError(fault)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        # "auto" would ask the Hub whether the vocabulary was resized.
        model.save_pretrained(f"{draft}/new", selected_adapters=[name], save_embedding_layers=False)
        made = Path(draft, "new", "" if name == "default" else name)
        text = json.dumps(_about(model, base), indent=1)
        (made / TRAINED_ON).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, f"{draft}/old")
        os.replace(made, folder)
    return folder


def _cannot_return(config: PeftConfig) -> str:
    """Why an adapter of this configuration would not give the same model again, and what to do; "" if it would."""
    if config.peft_type not in KINDS:
        return (
            f"peft_type={config.peft_type.value}: only {', '.join(KINDS)} are saved and loaded here. Save with "
            f"model.save_pretrained and load with PEFT, which checks neither base nor labels; or use LoRA."
        )
    start = getattr(config, "init_lora_weights", True)
    if not isinstance(start, bool) and start not in ("gaussian", "orthogonal"):
        return (
            f"init_lora_weights={start!r} moved a part of the base into the adapter, so it fits no "
            f"base but this one. Convert it with path_initial_model_for_weight_conversion, or merge and save all."
        )
    if getattr(config, "bias", "none") == "lora_only":
        return "bias='lora_only': PEFT 0.19 and 0.20 do not save these biases. Use bias='all' or 'none'."
    return ""


def _moved(model: PeftModel, base: dict[str, torch.Tensor]) -> str:
    """How the base was changed, so that the adapter would not fit a fresh one; "" if it was not."""
    if any(getattr(module, "merged", False) for module in model.modules()):
        return "an adapter is merged into the base, which is another one now. Call unmerge_adapter() first."
    if trained := [key for key, parameter in base.items() if parameter.requires_grad]:
        return (
            f"{len(trained)} tensors of the base are trained as well, such as {trained[0]}, and do not travel with the "
            f"adapter. Name their modules in modules_to_save, or freeze them before get_peft_model."
        )
    return ""


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str = "default",
    other_base: bool = False,
    unchecked: bool = False,
) -> PeftModel:
    """Attach a saved adapter to its base; a second one goes beside the first, to be chosen with `set_adapter`.

    Args:
        model: the base, or the `PeftModel` that an earlier call returned.
        folder: what `save_adapter` wrote.
        name: under which name to attach it.
        other_base: attach it to another base of the same size on purpose, such as the original of a
            quantised one. The answers will differ; measure by how much.
        unchecked: accept one that PEFT wrote, without what it was trained on.

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
    config, about, tensors = _read(folder, unchecked)
    if fault := _cannot_return(config):
        raise AdapterError(f"{folder / CONFIG}: {fault}")
    base = _bare(model)
    attached = base is not model
    if attached and name in model.peft_config:
        raise ParameterError(f"name={name!r}: an adapter of this name is attached already. Choose another name.")
    other = model.active_peft_config.peft_type if attached else config.peft_type
    if other != config.peft_type:
        raise AdapterError(
            f"{folder / CONFIG}: peft_type is {config.peft_type.value}, the adapter attached already is of type "
            f"{other.value}. Load adapters of different types into separate models."
        )
    expected = task_types_of(base, config)
    here = {"task_type": config.task_type if config.task_type in expected else expected[0]}
    here |= _about(model, _below(model, config)) if about else {}
    _check_base(folder, here, about | {"task_type": config.task_type}, other_base)
    if not about:
        print(f"{folder}: no {TRAINED_ON}, so nothing says which base and labels it is for; only its shapes fit.")
    try:
        if config.is_prompt_learning:
            check_prompt(base, config.num_virtual_tokens, prefix=config.peft_type == "PREFIX_TUNING")
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
        if attached and config.is_prompt_learning:  # not delete_adapter, which fails for prompts in PEFT 0.19
            for parts in (wrapped.prompt_encoder, wrapped.peft_config):
                parts.pop(name)
        elif attached:
            wrapped.delete_adapter(name)
        elif not config.is_prompt_learning:  # a prompt leaves the base as it is
            wrapped.unload()
        raise AdapterError(f"{folder / WEIGHTS}: {fault}")
    set_peft_model_state_dict(wrapped, tensors, adapter_name=name)
    wrapped.set_adapter(name)
    wrapped.requires_grad_(False)
    return wrapped.eval()


def _read(folder: Path, unchecked: bool) -> tuple[PeftConfig, dict, dict[str, torch.Tensor]]:
    """Configuration, what it was trained on ({} if that may lack and does), and weights."""
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise AdapterError(f"{folder / file}: no such file. An adapter is a folder that save_adapter wrote.")
    bare = not (folder / TRAINED_ON).is_file()
    if bare and not unchecked:
        raise AdapterError(
            f"{folder / TRAINED_ON}: no such file. If PEFT wrote this adapter and you know its base, say "
            f"unchecked=True."
        )
    file = CONFIG
    try:
        config = _read_config(folder / file)
        file = TRAINED_ON
        about = {} if bare else json.loads((folder / file).read_text(encoding="utf-8"))
        keys = {"labels", "base_fingerprint", "base_parameters", "base_dtypes"}
        if not bare and (lacking := keys - about.keys()):
            raise KeyError(", ".join(sorted(lacking)))
        file = WEIGHTS
        return config, about, load_file(folder / file)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"{folder / file}: damaged, cut short, or not one of ours ({reason}). Copy the adapter again."
        ) from None


def _read_config(file: Path) -> PeftConfig:
    """An adapter's configuration. Keys of a newer PEFT are left out if they are empty, else refused.

    PEFT leaves them out whatever they say, with a warning.
    """
    import peft

    given = json.loads(file.read_text(encoding="utf-8"))
    if given["peft_type"] not in KINDS:
        raise ValueError(f"peft_type is {given['peft_type']}, expected one of {', '.join(KINDS)}")
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[given["peft_type"]]
    unknown = given.keys() - {field.name for field in fields(kind)}
    full = {
        key: given[key] for key in sorted(unknown) if given[key] is not False and given[key] not in (None, "", [], {})
    }
    versions = f"written by PEFT {given.get('peft_version', '(an unknown version)')}, this is {peft.__version__}"
    if full:
        raise AdapterError(f"{file}: this PEFT does not know {full}: {versions}. Install the version that wrote it.")
    if unknown:
        print(f"{file}: left out {', '.join(sorted(unknown))}, unknown here and empty: {versions}.")
    return kind(**{key: value for key, value in given.items() if key not in unknown})


def _check_base(folder: Path, here: dict, about: dict, other_base: bool) -> None:
    for key, said, remedy in (
        ("task_type", "a model of task_type {!r}", "Load the kind of model that the adapter was trained for."),
        ("base_parameters", "a base of {:,} parameters", "Load the model that the adapter was trained on."),
        ("base_dtypes", "{} weights", "Load the base in that type, or say other_base=True if you mean it."),
        ("base_fingerprint", "weights {:.12}", "This is another base of the same shape: load the one of its training."),
        ("labels", "the labels {}", "Give the same labels in the same order."),
    ):
        if key in here and here[key] != about[key] and not (other_base and key in ("base_dtypes", "base_fingerprint")):
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
