"""Records the runs that take too long for a reader: the notebooks again, with several seeds and full sizes.

    python -m tools.measure [NOTEBOOK ...] [--resume] [--at-once N]

The records, with command, date and hardware, go to data/measurements/<notebook>.json, which is never edited by hand.
Each finished run stays in results/measure/<notebook>/<set>-<seed>/, from where --resume takes it. Small models leave
most of several cores idle: N runs at once are sooner done, each on its share of the cores, which the records name.
"""

import argparse
import datetime
import json
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from papermill import inspect_notebook

from tools.run import ROOT, notebooks_of, run_notebook

SEEDS = (0, 1, 2)
NOTEBOOKS = [path.stem for path in notebooks_of()]
# Sets of parameters of a notebook, the largest with steps enough to see each text twice; of others `full_size`, or
# nothing where it has no such parameter.
FULL_SIZE: dict[str, list[dict[str, Any]]] = {
    "01_feature_extraction": [
        {"train_examples": 96},
        {"train_examples": 384},
        {"train_examples": 1200, "fine_tuning_steps": 150},
    ],
}


def sets_of(notebook: str) -> list[dict[str, Any]]:
    """The sets of parameters that a notebook is recorded with."""
    if notebook in FULL_SIZE:
        return FULL_SIZE[notebook]
    known = inspect_notebook(str(ROOT / "notebooks" / f"{notebook}.ipynb"))
    return [{"full_size": True} if "full_size" in known else {}]


def hardware() -> str:
    """Processor, its vector instructions (processors of one name differ in them), cores, memory, and the card."""
    import psutil
    import torch

    about, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if about.exists() and (found := re.search(r"model name\s*: (.+)", about.read_text(encoding="utf-8"))):
        name = found[1]
    name += f" with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {psutil.virtual_memory().total / 2**30:.0f} GiB{card}"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON, one a line, so that a change is seen as a line; in one step."""
    draft = path.with_suffix(".draft")
    draft.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    draft.replace(path)


def measure(notebook: str, *, resume: bool = False, at_once: int = 1) -> list[dict[str, Any]]:
    """The records of one notebook for every set of parameters and seed; what two runs share is kept once."""
    sets = sets_of(notebook)
    source, threads = ROOT / "notebooks" / f"{notebook}.ipynb", max(1, (os.cpu_count() or 1) // at_once)
    command = f"python -m tools.measure {notebook}" + f" --at-once {at_once}" * (at_once > 1)
    about = {"command": command, "date": datetime.date.today().isoformat()}
    about["hardware"] = f"{hardware()}, {at_once} runs at once of {threads} threads" if at_once > 1 else hardware()

    def run(number: int, seed: int) -> list[dict[str, Any]]:
        folder = ROOT / "results" / "measure" / notebook / f"{number}-{seed}"
        finished = folder / "finished.json"
        if not (resume and finished.exists()):
            finished.unlink(missing_ok=True)
            given = {"parameters": {"seed": seed, **sets[number]}, "cell_timeout": 10_000}
            given["environment"] = {"OMP_NUM_THREADS": str(threads)} if at_once > 1 else {}
            result = run_notebook(source, output_dir=folder, results_dir=folder, **given)
            records = json.loads(result.records.read_text(encoding="utf-8"))
            write_rows(finished, [{**record, **about} for record in records])
        return json.loads(finished.read_text(encoding="utf-8"))

    with ThreadPoolExecutor(at_once) as pool:  # threads: each run is a process of its own
        runs = [pool.submit(run, number, seed) for number in range(len(sets)) for seed in SEEDS]
    rows = {}
    for row in (row for done in runs for row in done.result()):
        same = [row[key] for key in ("technique", "variant", "settings", "split", "seed", "metric")]
        rows.setdefault(json.dumps(same, sort_keys=True), row)
    return list(rows.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.measure", description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", default=NOTEBOOKS, metavar="NOTEBOOK", help="default: all")
    parser.add_argument("--resume", action="store_true", help="keep the runs that an interrupted command finished")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs at once (1)")
    options = parser.parse_args()
    for notebook in options.notebooks:
        write_rows(
            ROOT / "data" / "measurements" / f"{notebook}.json",
            measure(notebook, resume=options.resume, at_once=options.at_once),
        )
