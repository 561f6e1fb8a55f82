"""Loads encoders, classifiers and language models with their tokenizers, and finds the blocks of a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .attention import read_text_by_text
from .errors import ModelError, OfflineError, ParameterError
from .hub import ENCODER, LANGUAGE_MODEL, find_model
from .measuring import count_parameters
from .quantization import check_kind, check_not_quantized, check_quantization, settle

OPEN_LANGUAGE_MODEL = "Qwen/Qwen3-0.6B-Base"  # what "auto" means on a GPU: open, without a licence click
WORKS = f"{ENCODER} (an encoder) or {OPEN_LANGUAGE_MODEL} (a language model)"


def load_encoder(
    name: str = ENCODER,
    *,
    random_weights: bool = False,
    seed: int = 0,
    device: str = "cpu",
    quantization: BitsAndBytesConfig | None = None,
    quiet: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained backbone without a head, in float32 and evaluation mode, and its tokenizer.

    Args:
        name: a local folder or a Hub id, encoder (BERT-like) or decoder (GPT-like).
        random_weights: draw the weights with `seed`: the control that shows what pretraining is worth.
        quantization: load the linear layers in 4 or 8 bits; the rest stays float32.
        quiet: do not print where the model came from.

    Returns a model whose output has `last_hidden_state` (batch, tokens, width) and, with
    `output_hidden_states=True`, one such tensor for the embeddings and one a layer; and a tokenizer
    that pads, with another special token if it has none for it: harmless where the mask hides it.

    Raises:
        ModelError: a file is missing, damaged or not what it should be, config.json and weights do not
            fit, the tokenizer cannot be read or does not fit, the weights are quantised already (each
            names the file); the architecture cannot go through the notebooks, see `check_architecture`.
        OfflineError: it is nowhere on this machine and the Hub does not answer.
        DeviceError, ParameterError: see `helpers.quantization.check_quantization`.
    """
    folder, source = find_model(name)
    model, source = _load(AutoModel, folder, source, seed if random_weights else None, device, quantization)
    tokenizer = _read_tokenizer(folder)
    _check_rows(folder, model, tokenizer)
    if tokenizer.pad_token is None:
        spare = [tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens]
        tokenizer.pad_token = next(filter(None, spare), None)
        if tokenizer.pad_token is None:
            raise ModelError(
                f"{folder}/tokenizer_config.json: no padding token, no end token and no other special token. Name the "
                f"pad_token with which the model was trained."
            )
    if not quiet:
        print(f"Encoder {name}: {count_parameters(model).total:,} parameters from {source}")
    return model, tokenizer


class Classifier(nn.Module):
    """A backbone, the mean over its last layer's real tokens, and a linear head that starts at zero.

    The classifier that notebook 1 builds step by step, in the form that `Trainer` and PEFT expect.
    `backbone` maps (batch, tokens) to (batch, tokens, width), `head` (batch, width) to (batch, labels);
    `labels` has the labels' names in the order of the head's outputs.
    """

    base_model_prefix = "backbone"  # PEFT asks for it where transformers renames the weights of a checkpoint

    def __init__(self, backbone: PreTrainedModel, labels: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.labels = list(labels)
        self.head = nn.Linear(backbone.config.hidden_size, len(self.labels))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # What PEFT looks at to choose its layers; without it, an adapter could not be merged into 4-bit weights.
        self.is_loaded_in_4bit = getattr(backbone, "is_loaded_in_4bit", False)
        self.is_loaded_in_8bit = getattr(backbone, "is_loaded_in_8bit", False)

    # No **kwargs here: Trainer would take them as a promise to normalise the loss over accumulated batches.
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return `logits`, (batch, labels) in float32, and the cross-entropy `loss` if `labels` are given."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.head((hidden * weights).sum(1) / weights.sum(1)).float()
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def load_classifier(
    name: str = ENCODER,
    labels: Sequence[str] = (),
    *,
    random_weights: bool = False,
    seed: int = 0,
    device: str = "cpu",
    quantization: BitsAndBytesConfig | None = None,
) -> Classifier:
    """Load a pretrained backbone under a new head of zeros, in float32, evaluation mode, and without dropout.

    Options and errors are those of `load_encoder`; `labels` are the names of the labels, at least two
    (else `ParameterError`), and the head stays float32. Trainings of a few dozen steps gain nothing from dropout; the
    draws are a tenth of their time, and forbid that the halves of a batch are computed beside each other.
    """
    if len(labels) < 2:
        raise ParameterError(f"labels={list(labels)}: a classifier needs at least two.")
    backbone, _ = _load(AutoModel, *find_model(name), seed if random_weights else None, device, quantization)
    for module, name in active_dropout(backbone):
        setattr(module, name, 0.0)
    return Classifier(backbone, labels).to(device).eval()


def active_dropout(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Each module that drops something in training, with the name of its probability; architectures differ in both."""
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float)
        and value > 0
        and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout)))
    ]


def load_language_model(
    name: str = "auto",
    *,
    random_weights: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: BitsAndBytesConfig | None = None,
    quiet: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in evaluation mode, and say which and why.

    Args:
        name: `"auto"`: the small model that ships in `data/language_model` (its README says how it was
            made); on a CUDA device an open model of the Hub (Qwen3-0.6B-Base, pinned revision), or the
            small one if that cannot be had. Else a local folder or a Hub id.
        random_weights, seed, quiet: as for `load_encoder`.
        dtype: the type of the weights; `quantization` replaces it in the linear layers of the blocks.

    Returns the model, whose output has `logits` (batch, tokens, vocabulary), and a tokenizer whose
    padding token is another one than its end token, so that the end can be learned.

    Raises: as `load_encoder`; `ModelError` also for a tokenizer that does not fit the model.
    """
    folder, source, why = _find_language_model(name, device)
    drawn = seed if random_weights else None
    model, source = _load(AutoModelForCausalLM, folder, source, drawn, device, quantization, dtype)
    read_text_by_text(model)
    tokenizer = _read_tokenizer(folder)
    _check_fit(folder, model, tokenizer)
    _pad_with_own_token(model, tokenizer)
    if not quiet:
        print(f"Language model {name!r}: {count_parameters(model).total:,} parameters from {source} ({why})")
    return model, tokenizer


def language_model_config(name: str = "auto", *, device: str = "cpu") -> PreTrainedConfig:
    """The configuration of the language model that `load_language_model` would load, without its weights."""
    return read_config(_find_language_model(name, device)[0])


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """Return a backbone's transformer blocks, from the first to the last, or raise `ModelError`.

    It is the `ModuleList` with as many members as the configuration has layers: `encoder.layer` in
    BERT, `h` in GPT-2, `layers` in Llama.
    """
    depth = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ModelError(
        f"{type(model).__name__}: found no list of {depth} blocks. Use a model made of one stack of transformer "
        f"blocks, such as {WORKS}."
    )


def straighten(model: PreTrainedModel) -> None:
    """Make GPT-2 a model like the others: put linear layers in place of its Conv1D, whose weights lie the other way.

    So what is written for linear layers, here, in a notebook or in PEFT, needs no second case. A state
    dictionary, and with it every saved file, keeps GPT-2's form, in both directions.
    """
    if model.can_generate():
        model.loss_type = model.loss_type or "ForCausalLM"  # else it warns of its own name at the first loss
    for name, old in list(model.named_modules()):
        if isinstance(old, Conv1D):
            new = nn.Linear(*old.weight.shape, device="meta")
            new.weight, new.bias = nn.Parameter(old.weight.detach().T.contiguous()), old.bias
            new.register_state_dict_post_hook(_turn)
            new.register_load_state_dict_pre_hook(_turn)
            model.set_submodule(name, new)


def _turn(_: nn.Module, state: dict[str, torch.Tensor], prefix: str, *__: object) -> None:
    if (key := f"{prefix}weight") in state:
        state[key] = state[key].T.contiguous()


def check_architecture(config: PreTrainedConfig, source: str | Path, *, writes: bool = False) -> None:
    """Refuse a kind of model that cannot go through the notebooks, before its weights are read.

    Raises:
        ModelError: an encoder-decoder, a model of more than text, a mixture of experts, one whose layers
            share a block, or an encoder where text is to be written (`writes`): names the file, the model
            type, the reason, and a model that works.
    """
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    if config.is_encoder_decoder:
        reason = "is an encoder-decoder, of two stacks; here one stack is trained"
    elif config.get_text_config() is not config:
        reason = "reads more than text, so its configuration is one of several models"
    elif any(getattr(config, name, None) for name in experts):
        reason = "is a mixture of experts, whose weights are no linear layers that LoRA or 4 bits could take"
    elif config.model_type == "albert":
        reason = "has one block for all layers, so none can be trained alone"
    elif writes and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        reason = "is an encoder: it reads in both directions, and cannot write"
    else:
        return
    raise ModelError(f"{source}: a model of type {config.model_type!r} {reason}. Use one such as {WORKS}.")


def read_config(folder: str | Path) -> PreTrainedConfig:
    """Read the config.json of a local folder; `ModelError` if it cannot be read or its values are impossible."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # impossible values raise classes of huggingface_hub that have no public home
        raise ModelError(
            f"{folder}/config.json: {_first_line(error)} Use a model type that transformers has, with the config.json "
            f"that belongs to it."
        ) from None


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a model can read at once, learned vectors included; None if its configuration sets no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return positions - 2  # these count their positions from 2
    return positions or None


def _find_language_model(name: str, device: str) -> tuple[Path, str, str]:
    """Folder of a language model, where it came from, and why it was chosen."""
    why = "as asked"
    if name == "auto":
        name, why = str(LANGUAGE_MODEL), "no GPU is used"
        if device.startswith("cuda"):
            try:
                return *find_model(OPEN_LANGUAGE_MODEL), "there is a GPU"
            except (ModelError, OfflineError) as error:
                why = f"{OPEN_LANGUAGE_MODEL} cannot be had: {error}"
    return *find_model(name), why


def _load(
    kind: type,
    folder: Path,
    source: str,
    seed: int | None,
    device: str,
    quantization: BitsAndBytesConfig | None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, str]:
    """The model of a checked folder, in evaluation mode, and where it came from; random weights if there is a seed."""
    config = read_config(folder)
    check_architecture(config, f"{folder}/config.json", writes=kind is AutoModelForCausalLM)
    options = {"config": config, "dtype": dtype, "trust_remote_code": False}
    if quantization is not None:
        if seed is not None:
            raise ParameterError("random_weights=True with a quantisation: choose one of the two.")
        check_quantization(quantization, device=device)
        check_not_quantized(config, f"{folder}/config.json")
        check_kind(config)
        options |= {"quantization_config": quantization, "device_map": {"": device}}
        source += f", linear layers in {4 if quantization.load_in_4bit else 8} bits"
    missing = []
    try:
        if seed is None:
            with _quietly():
                model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
            pooler = {name for name in report["missing_keys"] if name.startswith("pooler.")}
            missing = sorted(report["missing_keys"] - pooler)
            if pooler:
                model.pooler = None  # nobody uses it, and a random one would be another base at each load
        else:
            source = f"random weights, seed {seed}"
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU as well
                model = kind.from_config(**options)
    except ImportError as error:  # weights that are quantised already, by a library that is not here
        raise ModelError(
            f"{folder}: transformers lacks what it needs to read these weights ({_first_line(error)}). Give the "
            f"original model, which is not quantised."
        ) from None
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: config.json and the weights do not fit ({_first_line(error)}). Download both again."
        ) from None
    if missing:
        raise ModelError(
            f"{folder}: the weights lack {len(missing)} tensors of this {type(model).__name__}, such as {missing[0]}, "
            f"which would stay random. Give a complete model, with the config.json that belongs to it."
        )
    transformer_blocks(model)  # refuse now what a later cell could not take
    straighten(model)
    if quantization is None:
        model.to(device)
    elif any(type(p).__name__ in ("Params4bit", "Int8Params") for p in model.parameters()):
        settle(model)
    else:
        raise ModelError(
            f"{folder}: not one layer of a model of type {config.model_type!r} was quantised. Use LoRA without a "
            f"quantisation, or one such as {WORKS}."
        )
    return model.eval(), source


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Load without a bar, whose widget state stops GitHub from rendering the notebook, and without a report.

    That of transformers 5.0 names tensors that no model needs; `_load` refuses missing ones.
    """
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the Rust library raises a bare Exception
        slow = next((file.name for file in folder.glob("*.model")), "")
        remedy = f"{slow} alone is not read here: take a model with a tokenizer.json." if slow else ""
        raise ModelError(
            f"{folder}: no readable tokenizer ({_first_line(error)}). "
            f"{remedy or 'Copy the tokenizer files of the model there.'}"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_rows(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that is larger than the table of vectors ends in an index error in some batch."""
    rows = model.get_input_embeddings().num_embeddings
    named = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    # Markers of another kind of input, such as Gemma 3's for a picture, no text brings about.
    marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i not in named}
    largest = max(set(tokenizer.get_vocab().values()) - marks, default=-1)
    if largest >= rows:
        raise ModelError(
            f"{folder}/tokenizer.json: its largest token id is {largest}, the model has {rows} (0 to {rows - 1}). "
            f"Copy the tokenizer files that belong to these weights."
        )


def _check_fit(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer of another model gives wrong words in silence, or an index error in the first batch."""
    _check_rows(folder, model, tokenizer)
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    expected = [stated] if isinstance(stated, int) else stated or []  # silence in config.json says nothing
    also = model.generation_config.eos_token_id
    allowed = [*expected, *(also if isinstance(also, list) else [also])]
    if tokenizer.eos_token_id is None or (expected and tokenizer.eos_token_id not in allowed):
        raise ModelError(
            f"{folder}/tokenizer_config.json: end token {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id}, "
            f"config.json expects {expected}. Copy the tokenizer files that belong to these weights."
        )


def _pad_with_own_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Choose a padding token that is not the end token: one the vocabulary has for it, or a new one."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        spare = [t for t in tokenizer.all_special_tokens if "pad" in t.lower() and t != tokenizer.eos_token]
        if spare or tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = spare[0] if spare else tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
            if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
                _settle_last_row(model)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id


@torch.no_grad()
def _settle_last_row(model: PreTrainedModel) -> None:
    """Make a new row the mean of the others: the same at each load, and never the likeliest token.

    transformers draws it at random, which is another base each time. Zeros would be likeliest where
    all logits are negative, as GPT-2's. In float64, so that every machine rounds to the same.
    """
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
        for table in layer.parameters():  # the weight, and the bias of an output
            parts = [part.double().sum(0) for part in table[:-1].cpu().split(4096)]
            table[-1] = torch.stack(parts).sum(0) / (len(table) - 1)
