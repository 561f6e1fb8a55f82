"""Trains what the notebooks train, outside of a notebook: on one card or several, and from where it was interrupted.

    python scale/train.py scale/recipe.yaml [--resume]
    accelerate launch --config_file scale/ddp.yaml scale/train.py scale/recipe.yaml [--resume]

The recipe has the notebooks' parameters. Data, model, PEFT's calls and the settings of `Trainer` are theirs too.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if "LOCAL_WORLD_SIZE" in os.environ:  # `helpers` leaves one card in sight; here each process has its own
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(int(os.environ["LOCAL_WORLD_SIZE"])))))

import helpers  # first of all: it settles what must be settled before torch

# isort: split
import numpy as np
import peft
import torch
import transformers
from accelerate.utils import DistributedType
from torch import nn
from transformers.trainer_utils import SaveStrategy

from checkpoints import Resumable, find_checkpoint, refuse_another_run, save_whole, tidy, writing
from helpers.adapters import check_prompt, query_value
from helpers.errors import DeviceError, TutorialError
from helpers.hub import find_model
from helpers.machine import Machine
from helpers.models import language_model_config
from helpers.training import in_halves, trainer_settings
from recipe import FSDP, LARGE, RANK, SHARDED, SMALL, WORLD, Recipe, check_bill, check_processes, read_recipe, settle

FREE = ("processes", "save_every", "card_gib", "score", "results_dir")  # what a resumed run may have otherwise

# ---------------------------------------------------------------- as the notebooks make it


def build(recipe: Recipe, machine: Machine, data: Any, size: float) -> tuple:
    """Model, tokenizer, rows and collator as the training cell of notebook 2, 3 or 4 makes them."""
    saving, dtype = size > LARGE, torch.float32
    if saving and recipe.technique != "full_fine_tuning":
        dtype = machine.precision
    options = {"device": "cpu" if SHARDED and recipe.technique != "qlora" else machine.device}
    if recipe.technique == "qlora":
        options["quantization"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=machine.precision,
            bnb_4bit_quant_storage=dtype if FSDP else None,  # FSDP shards what is of one type
        )
    lora = {"r": recipe.rank, "lora_alpha": recipe.alpha}
    if recipe.on == "topics":
        model = helpers.load_classifier(recipe.encoder, data.labels, **options)
        words = helpers.load_encoder(recipe.encoder, quiet=True)[1]
        model.requires_grad_(recipe.technique == "full_fine_tuning").head.requires_grad_(True)
        if recipe.technique != "full_fine_tuning":
            names = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Linear)]
            names = [name for name in names if "pooler" not in name]
            names = query_value(model.backbone) if recipe.targets == "q,v" else names
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=names, modules_to_save=["head"], **lora))
        return model, words, data.rows("train", words), transformers.DataCollatorWithPadding(words)
    model, words = helpers.load_language_model(recipe.language_model, dtype=dtype, quiet=RANK > 0, **options)
    rows, pad = data.rows("train", words), transformers.DataCollatorForSeq2Seq(words)
    flat = transformers.DataCollatorWithFlattening()
    if not SHARDED and recipe.technique != "prompt_tuning":  # as notebook 2 asserts
        batches = [collator(rows[:8], return_tensors="pt") for collator in (pad, flat)]
        with torch.no_grad():
            losses = [model(**{k: v.to(machine.device) for k, v in b.items()}, use_cache=False).loss for b in batches]
        flat = flat if abs(losses[0] - losses[1]) < 1e-2 else pad
    if recipe.technique == "qlora":
        if not FSDP:
            peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=saving)
    else:
        torch.manual_seed(recipe.seed)  # the notebooks load before they seed
        model.requires_grad_(recipe.technique == "full_fine_tuning")
        if saving and not SHARDED:  # these have it in their own configuration
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
    if recipe.technique == "prompt_tuning":
        words.padding_side = "right"
        check_prompt(model, recipe.length, longest_text=max(len(row["input_ids"]) for row in rows))
        shape = {"task_type": "CAUSAL_LM", "num_virtual_tokens": recipe.length}
        table = model.get_input_embeddings().weight.detach()
        model = peft.get_peft_model(model, peft.PromptTuningConfig(**shape))
        used, counts = np.unique(np.concatenate([row["input_ids"] for row in rows]), return_counts=True)
        frequent = torch.tensor(used[np.argsort(-counts)[:1000]])
        start = table[frequent[torch.randint(len(frequent), (recipe.length,))]]
        model.prompt_encoder["default"].embedding.weight.detach().copy_(start)
        return model, words, rows, pad
    if recipe.technique != "full_fine_tuning":
        targets = query_value(model) if recipe.targets == "q,v" else recipe.targets
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **lora))
    return model, words, rows, flat


# ---------------------------------------------------------------- the run


def train(recipe: Recipe, resume: bool) -> None:
    """Train, save what was trained, score and record."""
    check_processes(recipe.processes)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    machine = helpers.choose_machine(precision=recipe.precision)
    config, size, backbone = None, 0.0, recipe.encoder
    if recipe.on == "docstrings":
        config = language_model_config(recipe.language_model, device=machine.device)
        size = helpers.memory_bill(config, method="full", length=1).total_parameters
        backbone = "data/language_model" if size < SMALL else "open model"
        backbone = backbone if recipe.language_model == "auto" else recipe.language_model
    else:
        find_model(recipe.encoder)
    recipe = settle(recipe, size)
    check_bill(recipe, machine, config, size)
    columns = {"text_column": recipe.text_column, "label_column": recipe.label_column, "seed": recipe.seed}
    if recipe.on == "docstrings":
        data = helpers.load_docstrings(recipe.style, recipe.code)
    else:
        data = helpers.load_task(recipe.task, train_examples=recipe.train_examples, **columns)
    keeping = {"seed": recipe.seed, "machine": machine, "results_dir": recipe.results_dir}
    board = helpers.Scoreboard(f"scale_{recipe.name}", data, backbone=backbone, **keeping)
    folder = board.results / "scale" / recipe.name
    about = {key: value for key, value in asdict(recipe).items() if key not in FREE}
    about |= {"processes": WORLD, "sharded": SHARDED, "device": machine.device, "data": data.fingerprint}
    about |= {"precision": str(machine.precision)}
    checkpoint, skipped = find_checkpoint(folder, resume)
    if checkpoint:
        refuse_another_run(checkpoint, about)
    sizes = {"steps": recipe.steps, "batch": recipe.batch, "gathered": recipe.gathered, "seed": recipe.seed}
    settings = trainer_settings(machine, **sizes)  # from here on the processes know each other
    os.rmdir(settings.output_dir)
    settings.output_dir, settings.ddp_find_unused_parameters = str(folder), False
    if recipe.save_every:
        settings.save_strategy, settings.save_steps = SaveStrategy.STEPS, recipe.save_every
    if settings.world_size != WORLD:
        raise DeviceError(f"{settings.world_size} of {WORLD} processes found each other. Start them by torchrun.")
    if FSDP and machine.device == "cpu":  # accelerate shards on cards only, PyTorch on the CPU as well
        settings.distributed_state.distributed_type = DistributedType.MULTI_GPU
    settings.distributed_state.wait_for_everyone()  # all have looked at what is deleted now
    if RANK == 0:
        tidy(folder, skipped)
    shape = {"prompt_tuning": ["length"], "full_fine_tuning": []}.get(recipe.technique, ["targets", "rank"])
    used = {key: getattr(recipe, key) for key in (*shape, "rate", "steps", "batch", "gathered")} | {"processes": WORLD}
    with board.run(recipe.technique, recipe.name, **used) as run:
        model, words, rows, collator = build(recipe, machine, data, size)
        about |= {"weights at the start": helpers.fingerprint(model)}
        if checkpoint:
            refuse_another_run(checkpoint, about)
        optimizer = torch.optim.AdamW
        if recipe.technique == "qlora" and size > LARGE and not SHARDED:  # not paged: that cannot be saved
            from bitsandbytes.optim import AdamW8bit as optimizer
        decay = 0.0 if recipe.technique == "prompt_tuning" else 0.01
        options = {"model": model, "args": settings, "train_dataset": rows, "data_collator": collator}
        trainer = Resumable(
            recipe=recipe, make_optimizer=partial(optimizer, weight_decay=decay), about=about, **options
        )
        with in_halves(trainer):  # as the notebooks train
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        run.losses = trainer.losses()
        held = (getattr(p, "to_local", lambda p=p: p)().numel() for p in trainer.model.parameters())
        board.note("numbers in this process", sum(held))
        if SHARDED:
            state = trainer.accelerator.get_state_dict(trainer.model)
            model = build(recipe, machine, data, size)[0] if RANK == 0 else None
            for name, parameter in model.named_parameters() if model else ():
                if parameter.requires_grad:
                    parameter.data.copy_(state[name])
        run.model = model
    if RANK == 0:
        finish(recipe, run, words, collator)


def finish(recipe: Recipe, run: helpers.scoreboard.Run, words: Any, collator: Callable) -> None:
    """Save what was trained, score it, and record the run: rank 0 alone."""
    board, data = run.board, run.task
    kind = "models" if recipe.technique == "full_fine_tuning" else "adapters"
    folder = board.results / kind / board.notebook
    with writing(str(folder)):
        if kind == "adapters":
            helpers.save_adapter(run.model, folder)
        else:
            save_whole(run.model, words, folder)
    print(f"Saved in {folder}.")
    run.keep("train", loss=run.losses[-1])
    for split in (split for split in data.splits if split != "train" and recipe.score):
        if recipe.on == "topics":
            rows = data.rows(split, words)
            found = helpers.predict(run.model.to(board.machine.device), rows, collator, machine=board.machine)
        else:
            prompts = [f"{signature}\n" for signature in data.signatures(split)]
            model = run.model.to(board.machine.device)
            found = helpers.generate(model, words, prompts, machine=board.machine, new_tokens=96)
        run.score(split, found)
    with writing(str(board.results)):
        board.save(quiet=True)
    print(run)


def main(arguments: list[str] | None = None) -> int:
    """Run one recipe; 0 if it was trained and recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="a YAML file, see scale/recipe.yaml")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint")
    options = parser.parse_args(arguments)
    if RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    try:
        train(read_recipe(options.recipe), options.resume)
    except TutorialError as error:
        if RANK == 0 or torch.distributed.is_initialized():  # before that all say the same
            print(f"Stopped: {error}", file=sys.stderr, flush=True)
        return 1
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
