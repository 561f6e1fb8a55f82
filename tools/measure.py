"""Records the runs that take too long for a reader: the notebooks again, with several seeds and full sizes.

    python -m tools.measure [NOTEBOOK ...]

Each notebook is executed strictly for every seed, with the parameters below, and its records are
written together, with command, date and hardware, to data/measurements/<notebook>.json. Notebooks
and scoreboard show them as recorded. The files are never edited by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

from tools.run_notebooks import ROOT, run_notebook

MEASUREMENTS = ROOT / "data" / "measurements"
SEEDS = (0, 1, 2)
FULL_SIZE: dict[str, dict] = {
    "01_feature_extraction": {},  # the defaults: here only the seeds are too long to wait for
    "02_lora": {
        "sweep_steps": 100,
        "sweep_ranks": [1, 4, 16, 64],
        "sweep_targets": ["q,v", "attention", "all linear"],
        "lora_rates": [2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2],
        "full_rates": [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3],
        "relatives": ["rsLoRA", "DoRA", "PiSSA", "LoRA+"],  # LoRA itself runs at this length in section 4
        "relatives_steps": 150,
        "reply_full_fine_tuning": True,
    },
    "03_qlora": {},  # the defaults
    "04_prompt_tuning": {
        "long_steps": 450,
        "sweep_steps": 50,
        "sweep_rates": [5e-5, 5e-4, 1e-3, 5e-3, 5e-2, 5e-1],
        "sweep_lengths": [1, 5, 20, 50, 100],
        "sweep_starts": ["random", "vocabulary", "text", "labels"],
        "relatives": ["prefix tuning", "P-tuning", "LoRA", "ensemble"],
        "relatives_steps": 150,
        "asked_in_words": 120,
        "topic_steps": 300,
        "reply_steps": 100,
        "graded_questions": 120,
    },
}


def hardware() -> str:
    """Processor, its vector instructions, cores, memory and, where there is one, the card."""
    import psutil
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = found[1] if found else name
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    vectors = torch.backends.cpu.get_cpu_capability()  # processors of one name differ in it, and in speed
    return f"{name} with {vectors}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB{card}"


def record_notebook(notebook: str) -> Path:
    """Run one notebook for every seed and write `data/measurements/<notebook>.json`."""
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    target = MEASUREMENTS / f"{notebook}.json"
    about = {
        "command": f"python -m tools.measure {notebook}",
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
    }
    rows = []
    for seed in SEEDS:
        print(f"{notebook}, seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            result = run_notebook(
                source,
                output_dir=Path(folder) / "executed",
                results_dir=Path(folder),
                parameters={"seed": seed, **FULL_SIZE.get(notebook, {})},
                progress=sys.stdout,
            )
            rows += [{**row, **about} for row in json.loads(result.records.read_text(encoding="utf-8"))]
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".json.draft")
    draft.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    os.replace(draft, target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.measure", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", default=list(FULL_SIZE), metavar="NOTEBOOK", help="default: all")
    options = parser.parse_args()
    unknown = [name for name in options.notebooks if not (ROOT / "notebooks" / f"{name}.ipynb").exists()]
    if unknown:
        parser.error(f"there is no notebooks/{unknown[0]}.ipynb")
    for notebook in options.notebooks:
        print(f"wrote {record_notebook(notebook).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
