"""What pretraining is worth: the same model, from pretrained and from random weights, taught to answer the helpdesk."""

from __future__ import annotations

import time

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.machine import Machine
from helpers.replies import Pair, grade_replies

IGNORED = -100  # the label that the loss leaves out
EPOCHS, BATCH, LR = 4, 16, 1e-3  # the same for both starts; not tuned


def prompt_of(question: str) -> str:
    return f"Question: {question}\nReply:"


def encode_pair(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of question, reply and end token, and their labels: `IGNORED` over the question."""
    prompt = tokenizer(prompt_of(pair.question))["input_ids"]
    reply = tokenizer(f" {pair.reply}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return torch.tensor(prompt + reply), torch.tensor([IGNORED] * len(prompt) + reply)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    machine: Machine,
    *,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    lr: float = LR,
    seed: int = 0,
) -> float:
    """Train all weights on question and reply, with the loss on reply and end token only; return the seconds."""
    examples = [encode_pair(tokenizer, pair) for pair in pairs]
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * -(-len(examples) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / (0.1 * steps), 1 - s / steps))
    model.train()
    begin = time.perf_counter()
    for _ in range(epochs):
        for rows in _batches(examples, batch, draw):
            ids = nn.utils.rnn.pad_sequence([r[0] for r in rows], True, tokenizer.pad_token_id).to(machine.device)
            labels = nn.utils.rnn.pad_sequence([r[1] for r in rows], True, IGNORED).to(machine.device)[:, 1:]
            counted = labels != IGNORED
            with machine.autocast():
                # Padding stands on the right, where a causal model does not look: no mask is needed.
                hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
                logits = model.lm_head(hidden[counted])  # only where the loss looks: half the work
            loss = nn.functional.cross_entropy(logits.float(), labels[counted])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    return time.perf_counter() - begin


def _batches(examples: list, batch: int, draw: torch.Generator) -> list[list]:
    """A random order in which neighbours have about the same length, so that little is padded."""
    order = torch.randperm(len(examples), generator=draw).tolist()
    groups = [
        sorted(order[i : i + 8 * batch], key=lambda j: len(examples[j][0])) for i in range(0, len(order), 8 * batch)
    ]
    batches = [group[i : i + batch] for group in groups for i in range(0, len(group), batch)]
    shuffled = torch.randperm(len(batches), generator=draw).tolist()
    return [[examples[j] for j in batches[i]] for i in shuffled]


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    machine: Machine,
    *,
    new_tokens: int = 96,
    batch: int = 48,
) -> list[tuple[str, bool]]:
    """The greedy reply to every question, and whether it ended by itself."""
    model.eval()
    tokenizer.padding_side = "left"  # so that every row goes on from its last token
    replies = []
    for i in range(0, len(questions), batch):
        inputs = tokenizer([prompt_of(q) for q in questions[i : i + batch]], padding=True, return_tensors="pt")
        inputs = inputs.to(machine.device)
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
        )[:, inputs["input_ids"].shape[1] :]
        ended = (out == tokenizer.eos_token_id).any(dim=1).tolist()
        replies += zip((t.strip() for t in tokenizer.batch_decode(out, skip_special_tokens=True)), ended)
    tokenizer.padding_side = "right"
    return replies


def grade(pairs: list[Pair], replies: list[tuple[str, bool]]) -> dict[str, float]:
    """Shares of replies that are right word for word, that belong to the right topic, and that ended by themselves."""
    ended = sum(by_itself for _, by_itself in replies) / len(pairs)
    return {**grade_replies(pairs, [text for text, _ in replies]), "ended": ended}
