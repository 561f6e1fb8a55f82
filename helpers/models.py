"""Loads encoders and tokenizers, and names the parts of a model that notebooks need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .errors import ModelError
from .hub import find_model

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def load_encoder(
    name: str = ENCODER, *, random_weights: bool = False, seed: int = 0, device: str = "cpu", quiet: bool = False
) -> PreTrainedModel:
    """Load a pretrained backbone without a head, in float32 and evaluation mode.

    Args:
        name: a local folder or a Hub id, encoder (BERT-like) or decoder (GPT-like).
        random_weights: build the same architecture with random weights drawn with `seed`: the
            control that shows what pretraining is worth.
        quiet: do not print where the model came from.

    Returns a `transformers` model whose output has `last_hidden_state` (batch, tokens, width) and,
    with `output_hidden_states=True`, one such tensor for the embeddings and one a layer.

    Raises:
        ModelError, OfflineError: see `helpers.hub.find_model`.
    """
    folder, source = find_model(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"{folder}/config.json: {str(error).splitlines()[0]} Use a model type that transformers has."
        ) from None
    missing: list[str] = []
    try:
        if random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU as well
                model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
            source = f"random weights, seed {seed}"
        else:
            with _no_progress_bar():
                model, report = AutoModel.from_pretrained(
                    folder,
                    config=config,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: config.json and the weights do not fit ({reason}). Download both again.") from None
    if missing:
        raise ModelError(
            f"{folder}: the weights lack {len(missing)} tensors of this {type(model).__name__}, such as {missing[0]}, "
            f"which would stay random. Give a complete model, with the config.json that belongs to it."
        )
    if not quiet:
        print(f"Encoder {name}: {sum(p.numel() for p in model.parameters()):,} parameters from {source}")
    return model.to(device).eval()


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """A bar for a second of loading is noise in a notebook, and its widget state stops GitHub from rendering it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(name: str = ENCODER) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model; decoders without a padding token pad with their end token.

    Padding with the end token is harmless for classification, where the mask hides it.

    Raises:
        ModelError: the folder has no tokenizer that `transformers` can read.
    """
    folder, _ = find_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{folder}: no readable tokenizer ({reason}). Copy tokenizer.json and tokenizer_config.json there."
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the list of a backbone's transformer blocks, from the first to the last.

    It is the `ModuleList` with as many members as the configuration has layers: `encoder.layer` in
    BERT, `h` in GPT-2, `layers` in Llama.

    Raises:
        ModelError: no such list is found.
    """
    depth = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ModelError(
        f"{type(model).__name__}: found no list of {depth} blocks. Use a model made of one stack of transformer blocks."
    )
