"""Trains with `transformers.Trainer` and its guards, as notebook 2 shows it, and predicts."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .errors import ParameterError
from .machine import Machine

if TYPE_CHECKING:
    from transformers import TrainingArguments

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

    Raises:
        ParameterError: a number that cannot work; a loss that is not finite, with step, rate and remedy.
    """
    from transformers import PrinterCallback, Trainer

    if steps < 1 or not rate > 0 or seed < 0:
        raise ParameterError(f"{steps=}, {rate=}, {seed=}: expected a step or more, a rate above 0, a seed from 0.")
    groups = {"A": [], "B": [], "head": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["head" if ".head." in f".{name}" else "B" if "lora_B" in name else "A"].append(parameter)
    rates = {"A": rate, "B": rate * b_ratio, "head": head_rate}
    groups = [{"params": members, "lr": rates[kind]} for kind, members in groups.items() if members]
    trainer = Trainer(
        model=model,
        args=trainer_settings(machine, steps=steps, batch=batch, gathered=gathered, seed=seed),
        train_dataset=rows,
        data_collator=collator,
        optimizers=(optimizer(groups, weight_decay=weight_decay), None),
    )
    trainer.remove_callback(PrinterCallback)  # it would print every step
    trainer.model_accepts_loss_kwargs = False  # else gradient accumulation reports, and applies, a larger loss
    trainer.train()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else it stays in 16 bits, wherever it is used
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    failed = next((step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)
    if failed is not None:
        raise ParameterError(
            f"the loss is {losses[failed - 1]} at step {failed}, learning rate {rate:.1e}. Start again with a third of "
            f"the learning rate; if that does not help, look for empty texts or labels, and use float32."
        )
    return losses


def trainer_settings(machine: Machine, *, steps: int, batch: int, gathered: int, seed: int) -> TrainingArguments:
    """What `Trainer` is told: without the last lines it hides a failed run, writes checkpoints, and phones home."""
    from transformers import TrainingArguments

    grouped = "train_sampling_strategy" in inspect.signature(TrainingArguments).parameters  # not in transformers 5.0
    by_length = {"train_sampling_strategy": "group_by_length"} if grouped else {"group_by_length": True}
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=gathered,
        warmup_steps=max(1, steps // 10),  # then the rate falls to zero in a straight line
        **by_length,  # texts of similar length together: less padding, less waiting
        bf16=machine.precision == torch.bfloat16,  # only where the processor computes in it
        fp16=machine.precision == torch.float16,
        use_cpu=machine.device == "cpu",
        dataloader_pin_memory=False,
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default logs a loss that is not a number as 0.0
        save_strategy="no",  # the default writes checkpoints
        report_to="none",  # the default sends to whatever tracker is installed
        disable_tqdm=True,
    )


@torch.no_grad()
def predict(
    model: nn.Module, rows: Sequence[dict], collator: Callable, *, machine: Machine, batch: int = 64
) -> torch.Tensor:
    """Logits of a classifier for each row, (rows, labels), float32 on the CPU; the model is left in evaluation mode."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # similar lengths: less padding
    found = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = collator([rows[i] for i in chosen]).to(machine.device)
        with machine.autocast():
            found |= dict(zip(chosen, model(**inputs).logits.float().cpu()))
    return torch.stack([found[i] for i in range(len(rows))])
