"""Says which checkpoints are complete: a manifest has size and hash of every file, and is written last, in one step."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from helpers.errors import ParameterError, TutorialError

MANIFEST = "manifest.json"


def seal(folder: Path, about: dict) -> None:
    """Make a checkpoint count: write the size and hash of every file in one step, then delete all but the last two."""
    files = {str(path.relative_to(folder)): describe(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    draft = folder / f"{MANIFEST}.draft"
    draft.write_text(json.dumps({"about": about, "files": files}, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, folder / MANIFEST)
    for path in [path for path in checkpoints(folder.parent) if (path / MANIFEST).exists()][2:]:
        shutil.rmtree(path)


def describe(path: Path) -> list:
    with path.open("rb") as stream:
        return [path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, the newest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))


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
        raise TutorialError(f"{what} could not be written ({error}). Free some space, then say --resume.") from None
