"""Says which checkpoints are complete: a manifest has size and hash of every file, and is written last, in one step."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from helpers.errors import ParameterError, TutorialError
from helpers.training import parameter_groups, progress_bar, refuse_infinite
from recipe import RANK, WORLD, Recipe

MANIFEST = "manifest.json"
HEAD_RATE = 1e-2  # of `fit`


def seal(folder: Path, about: dict) -> None:
    """Make a checkpoint count: write the size and hash of every file in one step, then delete what is older."""
    files = {str(path.relative_to(folder)): describe(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    draft = folder / f"{MANIFEST}.draft"
    draft.write_text(json.dumps({"about": about, "files": files}, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, folder / MANIFEST)
    tidy(folder.parent)


def tidy(folder: Path, skipped: Sequence[Path] = ()) -> None:
    """Delete the checkpoints that were skipped, and all but the last two of the others."""
    sealed = [path for path in checkpoints(folder) if (path / MANIFEST).exists() and path not in skipped]
    for path in checkpoints(folder):
        if path not in sealed[:2]:
            shutil.rmtree(path)


def describe(path: Path) -> list:
    with path.open("rb") as stream:
        return [path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, the newest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: -int(steps[path]))


def fault_of(folder: Path) -> str:
    """Why nothing may be resumed from a checkpoint, or ""."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, _ = manifest["files"], manifest["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"no whole {MANIFEST}, so it was not finished"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if odd := sorted(there ^ files.keys()):
        return f"{odd[0]} is {'missing' if odd[0] in files else 'not of it'}"
    return next((f"{name} is damaged" for name in files if describe(folder / name) != files[name]), "")


def find_checkpoint(folder: Path, resume: bool) -> tuple[Path | None, list[Path]]:
    """The newest complete checkpoint, or None, and those that were skipped for it; says which, and why."""
    found, skipped = checkpoints(folder), {}
    if found and not resume:
        raise ParameterError(f"{folder}: checkpoints of an earlier run. Say --resume, or delete them to begin anew.")
    for path in found:
        if not (fault := fault_of(path)):
            break
        skipped[path] = fault
    taken = next((path for path in found if path not in skipped), None)
    if resume:
        told = "".join(f"; skipped {path.name}: {fault}" for path, fault in skipped.items())
        print(
            f"Going on from {taken.name}{told}" if taken else f"No checkpoint to go on from, so this begins anew{told}"
        )
    return taken, list(skipped)


def refuse_another_run(checkpoint: Path, here: dict) -> None:
    """Raise `ParameterError` if a checkpoint was written with another recipe, data or number of processes."""
    before = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["about"]
    for key in (key for key in here if before.get(key) != here[key]):
        raise ParameterError(
            f"{checkpoint}: written with {key}={before.get(key)!r}, this run has {here[key]!r}. Go on with what it was "
            f"written with, or begin anew under another name."
        )


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Say in one sentence that something could not be written, as on a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TutorialError(
            f"{what} could not be written ({error}). Is the disk full? Make room, then say --resume."
        ) from None


def save_whole(model: nn.Module, words: Any, folder: Path) -> None:
    """A fully trained model; like an adapter it appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        new = Path(draft, "new")
        words.save_pretrained(new)
        if isinstance(model, transformers.PreTrainedModel):
            model.save_pretrained(new)
        else:
            save_model(model, str(new / "model.safetensors"))
        if folder.exists():
            os.replace(folder, f"{draft}/old")
        os.replace(new, folder)


class Resumable(transformers.Trainer):
    """`Trainer` with the optimiser of `fit`, which stops at a loss that is not finite, and seals its checkpoints."""

    def __init__(self, *, recipe: Recipe, make_optimizer: Callable, about: dict, **options: Any) -> None:
        super().__init__(**options)
        self.recipe, self.make_optimizer, self.about = recipe, make_optimizer, about
        # As in the notebooks; but the texts of several processes are of several lengths, and every token counts as one.
        self.model_accepts_loss_kwargs = WORLD > 1 and recipe.on == "docstrings"
        self.remove_callback(transformers.PrinterCallback)
        if RANK == 0:
            self.add_callback(progress_bar(recipe.steps))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(
                parameter_groups(model or self.model, self.recipe.rate, HEAD_RATE, 1.0)
            )
        return self.optimizer

    def log(self, *args: Any, **options: Any) -> None:
        super().log(*args, **options)
        if not math.isfinite(self.state.log_history[-1].get("loss", 0.0)):
            refuse_infinite(self.losses(), self.recipe.rate)

    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.state.log_history if "loss" in entry]

    def _save_checkpoint(self, *args: Any) -> None:
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, Trainer takes a step more
            return
        with writing(str(folder)):
            super()._save_checkpoint(*args)
            self.accelerator.wait_for_everyone()  # rank 0 seals what all have written
            if RANK == 0:
                seal(folder, self.about)
