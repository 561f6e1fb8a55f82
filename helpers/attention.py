"""Attention over texts that stand in one row, each by itself: what a mask over the whole row wastes is not computed."""

from itertools import pairwise

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def text_by_text(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention; where a row holds several texts (`DataCollatorWithFlattening`), one call for each.

    Args:
        query, key, value: (batch, heads, tokens, width of a head).
        attention_mask: (batch, 1, tokens, tokens), True where a token may look.

    Returns (batch, tokens, heads, width), as an attention function of transformers does.
    """
    lengths = texts_of(attention_mask)
    if len(lengths) < 2:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    options["is_causal"] = True
    texts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
    return torch.cat([sdpa_attention_forward(module, *text, None, **options)[0] for text in texts], dim=1), None


def texts_of(mask: torch.Tensor | None) -> list[int]:
    """Lengths of the texts in a row, read from its mask; none where it is another mask than theirs."""
    if mask is None or mask.dtype != torch.bool or mask.shape[0] > 1 or mask.shape[-2] != mask.shape[-1]:
        return []
    new = (~mask[0, 0].diagonal(-1)).nonzero().flatten() + 1  # these look at no token before them
    edges = [0, *new.tolist(), mask.shape[-1]]
    lengths = [after - before for before, after in pairwise(edges)]
    # Nothing but triangles: no window, no padding.
    return lengths if int(mask.sum()) == sum(n * (n + 1) // 2 for n in lengths) else []


def read_text_by_text(model: PreTrainedModel) -> None:
    """Let a model compute attention so: on the CPU, and if its architecture lets its attention be chosen."""
    attention = model.config._attn_implementation
    if attention == "sdpa" and model.device.type == "cpu" and model._can_set_attn_implementation():
        model.set_attn_implementation("text_by_text")


AttentionInterface.register("text_by_text", text_by_text)
AttentionMaskInterface.register("text_by_text", sdpa_mask)
