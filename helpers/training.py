"""Trains with `transformers.Trainer` and its guards, as notebook 2 shows it, predicts and generates."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .docstrings import Reply
from .errors import ParameterError
from .machine import Machine
from .models import active_dropout
from .waiting import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

# Trainer is imported where it is needed: it imports PEFT, and that bitsandbytes, after which no process can be started.


def fit(
    model: nn.Module,
    rows: Sequence[dict],
    collator: Callable,
    *,
    steps: int,
    rate: float,
    machine: Machine,
    seed: int = 0,
    batch: int = 16,
    gathered: int = 1,
    head_rate: float = 1e-2,
    b_ratio: float = 1.0,
    weight_decay: float = 0.01,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> list[float]:
    """Train what is trainable in a model, and return the loss of each step, in nats.

    Args:
        rows: unpadded examples with `input_ids`, `attention_mask` and `labels`.
        collator: makes a padded batch of rows.
        steps, batch, gathered: optimiser steps, rows a batch, and batches whose gradients make one step.
        rate, head_rate: learning rates of all that is trained, and of a head that starts at zero.
        b_ratio: rate of LoRA's B over that of A (LoRA+ takes 16).

    A bar shows how far it is, and the loss.

    Raises:
        ParameterError: a number that cannot work; a loss that is not finite, with step, rate and remedy.
    """
    from transformers import PrinterCallback, Trainer

    sizes = {"steps": steps, "batch": batch, "gathered": gathered, "seed": seed}
    groups = parameter_groups(model, rate, head_rate, b_ratio)
    trainer = Trainer(
        model=model,
        args=trainer_settings(machine, **sizes),
        train_dataset=rows,
        data_collator=collator,
        optimizers=(optimizer(groups, weight_decay=weight_decay), None),
    )
    trainer.remove_callback(PrinterCallback)  # it would print every step
    trainer.add_callback(progress_bar(steps))
    trainer.model_accepts_loss_kwargs = False  # else gathered batches count too much
    with in_halves(trainer):
        trainer.train()
    # Else the model stays in 16 bits, wherever it is used.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    refuse_infinite(losses, rate)
    return losses


# `fit` and `trainer_settings` are shown in notebook 2 as they are; a test holds both equal.


def parameter_groups(model: nn.Module, rate: float, head_rate: float, b_ratio: float) -> list[dict]:
    """What is trained, each kind with its learning rate.

    Raises:
        ParameterError: a rate of 0 or below trains nothing.
    """
    rates = {"A": rate, "B": rate * b_ratio, "head": head_rate}
    groups = {kind: {"params": [], "lr": lr} for kind, lr in rates.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "B" if "lora_B" in name else "A"
            kind = "head" if ".head." in f".{name}" else kind
            groups[kind]["params"].append(parameter)
    if not all(lr > 0 for lr in rates.values()):
        raise ParameterError(f"learning rates {rates}: expected numbers above 0.")
    return [group for group in groups.values() if group["params"]]


def trainer_settings(machine: Machine, *, steps: int, batch: int, gathered: int, seed: int) -> TrainingArguments:
    """What `Trainer` is told: without the last lines it hides a failed run, writes checkpoints, and phones home.

    Raises:
        ParameterError: no step, or a negative seed.
    """
    from transformers import TrainingArguments

    if steps < 1 or seed < 0:
        raise ParameterError(f"{steps=}, {seed=}: expected a step or more, a seed from 0.")
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=gathered,
        warmup_steps=max(1, steps // 10),  # then the rate falls to zero in a line
        bf16=machine.precision == torch.bfloat16,  # where the processor computes in it
        fp16=machine.precision == torch.float16,
        use_cpu=machine.device == "cpu",
        dataloader_pin_memory=False,
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default logs a loss that is NaN as 0.0
        save_strategy="no",  # the default writes checkpoints
        report_to="none",  # the default sends to whatever tracker is installed
        disable_tqdm=True,
    )


def progress_bar(steps: int) -> TrainerCallback:
    """A callback that shows how far the training is, and the loss; when it is done the bar is gone."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.bar = progress(what="training", total=steps)

        def on_log(self, args, state, control, logs, **_):
            self.bar.set_postfix({"loss": logs.get("loss")}, refresh=False)

        def on_step_end(self, args, state, control, **_):
            self.bar.update()

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    return Bar()


@contextmanager
def in_halves(trainer: Trainer) -> Iterator[None]:
    """On a CPU let a `Trainer` compute the halves of each batch beside each other, each on half of the cores.

    Threads that share one matrix product wait for each other thousands of times a step, and beside a busy process
    nearly always in vain; halves wait once. Their losses are weighted by the tokens, or texts, that count, so that loss
    and gradient are those of the whole batch. A model with dropout is left whole: its draws would depend on which half
    comes first. So is one of several processes, which wait for each other once a step as it is.
    """
    one_cpu = trainer.args.device.type == "cpu" and trainer.args.world_size == 1
    if not one_cpu or torch.get_num_threads() < 2 or active_dropout(trainer.model):
        yield
        return
    collate = trainer.data_collator

    def counted(half: dict) -> int:
        labels = half["labels"]
        return len(labels) if labels.ndim == 1 else int((labels[:, 1:] != -100).sum())

    def halves_of(rows: list[dict]) -> list[dict]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        halves = [collate(half) for half in (rows[::2], rows[1::2]) if half]
        return halves if all(map(counted, halves)) else [collate(rows)]

    def half_step(model: nn.Module, half: dict, share: float) -> torch.Tensor:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, half) * share / trainer.current_gradient_accumulation_steps
        loss.backward()
        return loss.detach()

    def training_step(model: nn.Module, halves: list[dict], _: Any = None) -> torch.Tensor:
        model.train()
        counts = [counted(half) for half in halves] if len(halves) > 1 else [1]
        shares = [count / sum(counts) for count in counts]
        gathered = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        model.zero_grad()  # a sum of two is the same in either order, one of three is not
        loss = sum(pool.map(half_step, [model] * len(halves), halves, shares))
        for p, grad in gathered:
            p.grad = grad if p.grad is None else grad + p.grad
        return loss

    trainer.data_collator, trainer.training_step = halves_of, training_step
    with _beside_each_other(2) as pool:
        yield


def refuse_infinite(losses: list[float], rate: float) -> None:
    """Raise ParameterError at the first loss that is not finite."""
    for step, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise ParameterError(
                f"the loss is {loss} at step {step}, learning rate {rate:.1e}. Start "
                "again with a third of the rate; if that does not help, look for empty "
                "texts or labels, and use float32."
            )


def each_batch(compute: Callable, batches: Sequence, machine: Machine) -> list[Any]:
    """What `compute` makes of each batch, without gradients, in the machine's precision, in their order.

    On a CPU two batches are computed beside each other, each on half of the cores, for the reason given at `in_halves`.
    """
    both = machine.device == "cpu" and torch.get_num_threads() > 1 and find_spec("transformers.utils.output_capturing")

    def computed(batch: Any) -> Any:
        with torch.no_grad(), machine.autocast():
            return compute(batch)

    with _beside_each_other(2 if both else 1) as pool:
        return list(progress(pool.map(computed, batches), "reading", total=len(batches)))


def predict(
    model: nn.Module, rows: Sequence[dict], collator: Callable, *, machine: Machine, batch: int = 64
) -> torch.Tensor:
    """Logits of a classifier for each row, (rows, labels), float32 on the CPU; the model is left in evaluation mode."""
    model.eval()
    batches = _similar([len(row["input_ids"]) for row in rows], batch)
    inputs = [collator([rows[i] for i in chosen]).to(machine.device) for chosen in batches]
    logits = torch.cat(each_batch(lambda given: model(**given).logits.float().cpu(), inputs, machine))
    return logits[np.concatenate(batches).argsort()]


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    machine: Machine,
    new_tokens: int = 128,
    batch: int = 64,
) -> list[Reply]:
    """What a language model writes after each prompt: the likeliest token at each place, until it ends or is cut off.

    Args:
        prompts: texts; they are padded on the left, so that every one goes on from its last token.
        new_tokens: where a reply that does not end is cut off.
        batch: prompts in a batch at most. On a CPU a batch for each core runs at a time, up to four.
    """
    model.eval()
    at_once = max(1, min(torch.get_num_threads(), len(prompts), 4)) if machine.device == "cpu" else 1
    batches = _similar([len(prompt) for prompt in prompts], min(batch, -(-len(prompts) // at_once) or 1))
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    asked = [tokenizer([prompts[i] for i in chosen], **padded) for chosen in batches]  # no two threads may pad at once
    bar = progress(what="writing", total=len(batches[::at_once]) * (1 + new_tokens))
    ticks = SimpleNamespace(put=lambda _: bar.update(), end=lambda: bar.update(-bar.n % (1 + new_tokens)))

    def write(model: nn.Module, first: int, streamer: Any = None) -> dict[int, Reply]:
        found = {}
        options = {"max_new_tokens": new_tokens, "do_sample": False, "use_cache": True, "streamer": streamer}
        for chosen, given in zip(batches[first::at_once], asked[first::at_once]):
            given = {name: given[name].to(machine.device) for name in ("input_ids", "attention_mask")}
            with machine.autocast():
                written = model.generate(**given, **options)[:, given["input_ids"].shape[1] :]
            ended = (written == tokenizer.eos_token_id).any(1).tolist()
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            found |= {i: Reply(text.strip(), done) for i, text, done in zip(chosen, texts, ended)}
        return found

    # Steps of one token leave all cores but one idle; batches beside each other do not. PEFT changes a model while it
    # writes, so each thread has modules of its own, over the same weights.
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        with _beside_each_other(at_once) as pool:
            twins = [copy.deepcopy(model, dict(weights)) for _ in range(1, at_once)]
            others = [pool.submit(write, twin, first) for first, twin in enumerate(twins, 1)]
            found = write(model, 0, ticks)
            for other in others:
                found |= other.result()
    finally:
        bar.close()
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _beside_each_other(at_once: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads, each of which computes on its share of the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads // at_once)
    try:
        with ThreadPoolExecutor(at_once) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _similar(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """The numbers of all texts in batches of similar length: less padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch] for start in range(0, len(order), batch)]
