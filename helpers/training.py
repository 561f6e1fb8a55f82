"""Guards for `transformers.Trainer`: every loss kept, a loss that is not finite stops the run."""

from __future__ import annotations

import inspect
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .errors import ParameterError


class LossWatch(TrainerCallback):
    """Collects the loss of every logged step in `losses` and stops a run whose loss is not finite.

    It needs `logging_steps=1` and `logging_nan_inf_filter=False`: by default `Trainer` logs a loss
    that is not a number as 0.0, and the curve looks splendid.

    Raises:
        ParameterError: during training, with the step, the learning rate and the remedy.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.logging_nan_inf_filter:
            raise ParameterError("logging_nan_inf_filter=True hides a loss that is not finite. Set it to False.")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ParameterError(
                f"the loss is {logs['loss']} at step {state.global_step}, learning rate "
                f"{logs.get('learning_rate', args.learning_rate):.1e}. Start again with a third of the learning rate; "
                f"if that does not help, look for empty texts or labels in the data, and use float32."
            )
        self.losses.append(logs["loss"])


def group_by_length() -> dict[str, Any]:
    """The setting of `TrainingArguments` that puts texts of similar length in one batch.

    It is `train_sampling_strategy="group_by_length"`, and in transformers 5.0 `group_by_length=True`.
    """
    if "train_sampling_strategy" in inspect.signature(TrainingArguments).parameters:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}
