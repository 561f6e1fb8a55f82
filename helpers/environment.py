"""What must be settled before torch is imported: threads that wait quietly, versions that are new enough, one card.

Nothing is installed and nothing is upgraded here: Colab and Kaggle break when that happens in a running session.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

from .errors import DeviceError, TutorialError

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
    "ipywidgets": "7.7",
}


def prepare() -> None:
    """What `import helpers` does first.

    Raises:
        TutorialError: a package is missing or too old; names it, and what to do.
    """
    # GNU OpenMP's threads spin at each barrier: beside one busy process training fell to a tenth of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Noise that a lesson cannot do anything about: PEFT asks by an old name, and a kernel that CPUs do without.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    check_packages()
    keep_one_card()


def where() -> str:
    """ "Colab", "Kaggle", "Binder", or the operating system's name."""
    # Not any KAGGLE_*: people have KAGGLE_KEY at home.
    marks = {"COLAB_RELEASE_TAG": "Colab", "KAGGLE_KERNEL_RUN_TYPE": "Kaggle", "BINDER_LAUNCH_HOST": "Binder"}
    return next((name for mark, name in marks.items() if os.environ.get(mark)), platform.system())


def check_packages() -> None:
    """Refuse a kernel that lacks something or has it too old."""
    wrong = []
    for name, oldest in OLDEST.items():
        try:
            here = platform.python_version() if name == "Python" else version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} (missing)")
            continue
        if _numbers(here) < _numbers(oldest):
            wrong.append(f"{name} {here} (needed: {oldest} or newer)")
    if wrong:
        remedy = "In the repository run `make setup`, then `make lab`, or choose the Python in .venv as the kernel."
        if where() in ("Colab", "Kaggle"):
            remedy = (
                "Choose the newest environment (Colab: Runtime > Change runtime type; Kaggle: Settings > Environment). "
                "Do not upgrade these here: the session would break."
            )
        said = "; ".join(wrong)
        raise TutorialError(f"This Python ({sys.executable}) lacks what the notebooks need: {said}. {remedy}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]]


def keep_one_card() -> None:
    """Hide every card but one from PyTorch, and all if none can be used; `TUTORIAL_CARD` says so in a few words.

    With two cards in sight, Trainer spreads each batch over both without a word. And a card for which
    this PyTorch has no kernels (Kaggle's P100) counts as available, and then every computation fails.

    Raises:
        DeviceError: PyTorch has started CUDA already, so that no card can be hidden any more.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:  # chosen by somebody already, or by an earlier import
        return
    cards = _cards()
    usable = [card for card in cards if _has_kernels(card[2])]
    if not cards or len(usable) == len(cards) == 1:
        return
    best = max(usable, key=lambda card: card[2], default=None)
    said = f"one of {len(cards)} cards used"
    if best is None:
        names = " and ".join(sorted({f"{name} (sm_{capability})" for _, name, capability in cards}))
        said = f"{names} not used: this PyTorch has no kernels for it; on Kaggle choose GPU T4 x2 as accelerator"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise DeviceError(f"{len(cards)} cards in sight, since PyTorch started before helpers: restart the session.")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which nvidia-smi counts
    os.environ["CUDA_VISIBLE_DEVICES"] = best[0] if best else ""
    os.environ["TUTORIAL_CARD"] = said


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
    rows = [row for row in rows if len(row) == 3 and re.fullmatch(r"\d+\.\d", row[2])]
    return [(index, name, int(capability.replace(".", ""))) for index, name, capability in rows]


def _has_kernels(capability: int) -> bool:
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or PyTorch would start CUDA to answer
    try:
        from .machine import has_kernels

        return has_kernels(*divmod(capability, 10))
    finally:
        del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
