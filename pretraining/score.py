"""Scores a language model on whole texts: loss for each token and bits for each byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Score:
    """`loss` in nats for each token, `bits_per_byte` of the UTF-8 text: the second does not depend on the tokenizer."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}, {self.bits_per_byte:.3f} bits per byte"


@torch.no_grad()
def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    device: str = "cpu",
    window: int = 1024,
    tokens_at_once: int = 8192,
) -> Score:
    """Score every text from its start token on; texts longer than `window` tokens are read in pieces of that length."""
    pieces = []
    for ids in tokenizer(texts, verbose=False)["input_ids"]:
        # Neighbouring pieces share one token, so that every token but the start is predicted once.
        pieces += [ids[i : i + window] for i in range(0, max(1, len(ids) - 1), window - 1)]
    pieces = sorted((p for p in pieces if len(p) > 1), key=len)  # sorted: little padding
    model.eval()
    batches: list[list[list[int]]] = [[]]
    for piece in pieces:  # the last piece of a batch is its longest, to which the others are padded
        if batches[-1] and (len(batches[-1]) + 1) * len(piece) > tokens_at_once:
            batches.append([])
        batches[-1].append(piece)
    nats, count = 0.0, 0
    for batch in batches:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in batch], batch_first=True, padding_value=-100)
        ids = ids.to(device)
        # Padding stands behind the text, and a causal model does not look ahead: no mask is needed.
        logits = model(input_ids=ids.clamp(min=0)[:, :-1]).logits
        nats += nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        count += int((ids[:, 1:] != -100).sum())
    size = sum(len(text.encode()) for text in texts)
    return Score(nats / count, nats / math.log(2) / size, count, size)
