"""Reads a recipe, and refuses what cannot work before anything is loaded."""

import difflib
import math
import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import transformers
import yaml

import helpers
from helpers.errors import DataError, ParameterError
from helpers.machine import Machine
from helpers.memory import require_fit

CHOICES = {
    "technique": ("lora", "qlora", "prompt_tuning", "full_fine_tuning"),
    "on": ("docstrings", "topics"),
    "style": ("google", "numpy"),
    "targets": ("all-linear", "q,v"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
}
FROM_ONE = ("steps", "length", "alpha")  # the other numbers begin at 0
SMALL, LARGE = 100e6, 1e9  # parameters, below and above which the notebooks have other numbers
RATES = {  # of the notebooks: for small language models, for others; on topics
    "lora": (8e-3, 2e-4, 2e-3),
    "qlora": (8e-3, 2e-4, 2e-3),
    "prompt_tuning": (3e-1, 3e-2, 0.0),
    "full_fine_tuning": (1e-3, 0.0, 2e-4),
}
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
FSDP, ZERO = (os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true" for kind in ("FSDP", "DEEPSPEED"))
SHARDED = FSDP or ZERO


@dataclass(frozen=True)
class Recipe:
    """The notebooks' parameters, and what only a run outside of them has.

    A rank, a rate, a batch and `gathered` of 0 stand for the notebook's own number.
    """

    name: str  # of everything that is written
    technique: str = "lora"
    on: str = "docstrings"
    task: str = "helpdesk"
    text_column: str = "text"
    label_column: str = "label"
    encoder: str = helpers.hub.ENCODER
    language_model: str = "auto"
    code: str = ""
    style: str = "google"
    seed: int = 0
    train_examples: int = 384
    results_dir: str = "results"
    precision: str = "auto"
    steps: int = 100
    length: int = 20  # vectors of a soft prompt
    targets: str = "all-linear"
    rank: int = 0
    alpha: int = 16
    rate: float = 0.0
    batch: int = 0  # rows in each process
    gathered: int = 0  # batches whose gradients make one step
    processes: int = 0  # how many there must be; 0: any number
    save_every: int = 0  # steps; 0: no checkpoints
    card_gib: float = 0.0  # memory of each card, for the bill; 0: no bill
    score: bool = True  # False: for a model that one card cannot hold


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file, every value checked; `ParameterError` or `DataError` names the key."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no readable YAML file ({error}). Give one such as scale/recipe.yaml.") from None
    known = {field.name: field for field in fields(Recipe)}
    if not isinstance(given, dict) or "name" not in given:
        raise DataError(f"{path}: expected lines `key: value`, a `name` among them. Keys: {', '.join(known)}.")
    given = {"on" if key is True else key: value for key, value in given.items()}  # YAML 1.1 takes `on` for true
    for key, value in given.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."
            raise ParameterError(f"{path}: unknown key {key!r}. {hint}")
        kind = known[key].type
        if type(value) is not kind and not (kind is float and type(value) is int):  # True is an int for isinstance
            told = f"{key}={value!r} is of type {type(value).__name__}, expected {kind.__name__}"
            hint = " (YAML takes 8e-3 for text: write 8.0e-3)" if kind is float and type(value) is str else ""
            raise ParameterError(f"{path}: {told}{hint}.")
        if key in CHOICES and value not in CHOICES[key]:
            raise ParameterError(f"{path}: {key}={value!r}: expected one of {', '.join(CHOICES[key])}.")
        least = 1 if key in FROM_ONE else 0
        if kind in (int, float) and not least <= value < (2**32 if kind is int else math.inf):
            raise ParameterError(f"{path}: {key}={value!r}: expected a finite number from {least}.")
    recipe = Recipe(**given)
    if not re.fullmatch(r"\w[\w.-]*", recipe.name):
        raise ParameterError(f"{path}: name={recipe.name!r}: expected letters, digits, '-', '_' and '.' only.")
    if recipe.on == "topics" and recipe.technique == "prompt_tuning":
        raise ParameterError(
            f"{path}: prompt_tuning on topics is notebook 4's own module, which no file holds. Use lora."
        )
    return recipe


def settle(recipe: Recipe, size: float) -> Recipe:
    """The recipe with the notebooks' numbers in place of zeros; `size` is that of the language model, in parameters."""
    saving = recipe.technique == "qlora" and recipe.on == "docstrings" and size > LARGE
    numbers = {"rank": 8, "batch": 16, "gathered": 1, "rate": RATES[recipe.technique][2]}
    if recipe.on == "docstrings":
        numbers = {"rank": 16, "batch": 8, "gathered": 1, "rate": RATES[recipe.technique][size >= SMALL]}
        numbers |= {"batch": 1, "gathered": 8} if saving else {}
    recipe = replace(recipe, **{key: value for key, value in numbers.items() if not getattr(recipe, key)})
    if not recipe.rate:
        raise ParameterError("rate=0: no notebook trains all of so large a model, so give a rate, such as 1e-5.")
    return recipe


def check_processes(wanted: int) -> None:
    """Refuse another number of processes than asked for."""
    if wanted not in (0, WORLD):
        raise ParameterError(
            f"processes={wanted}, but {WORLD} run. Start `torchrun --nproc_per_node {wanted} scale/train.py ...` "
            f"or `accelerate launch --multi_gpu --num_processes {wanted} scale/train.py ...`; without cards after "
            f"ACCELERATE_USE_CPU=true (`accelerate launch --cpu` starts one process, whatever it is told)."
        )


def check_bill(recipe: Recipe, machine: Machine, config: transformers.PreTrainedConfig, size: float) -> None:
    """Refuse a model that does not fit on each card."""
    if not recipe.card_gib:
        return
    if recipe.on == "topics" or recipe.technique == "prompt_tuning":
        raise ParameterError("card_gib: only LoRA, QLoRA and full fine-tuning on docstrings have a bill. Say 0.")
    large, sharded = size > LARGE, SHARDED and WORLD > 1
    how = {"method": recipe.technique.replace("_fine_tuning", ""), "batch": recipe.batch, "length": 128}
    how |= {"rank": recipe.rank, "gradient_checkpointing": large, "precision": "float32"}
    if how["method"] == "qlora" or (large and how["method"] == "lora"):  # the others keep their weights in 32 bits
        how["precision"] = str(machine.precision).removeprefix("torch.")
    how |= {"optimizer": "adamw_8bit"} if how["method"] == "qlora" and large and not sharded else {}
    how |= {"processes": WORLD, "sharding": "full" if sharded else "none"}
    require_fit(helpers.memory_bill(config, **how), recipe.card_gib)
