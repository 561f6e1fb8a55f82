"""Runs the benchmark: each measurement in a process of its own, ours and theirs by turns.

    python -m benchmarks.run [--quick] [--row TEXT] [--record]

A finished measurement is a line in results/bench/measured.jsonl, and is not run again; delete the folder to begin anew.
`--quick` tries every row at tiny sizes, in a folder of its own; `--record` takes a finished run to
benchmarks/measured.json and writes docs/speed.md.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time

import benchmarks
from benchmarks import ROOT
from tools.measure import hardware

PEERS = ROOT / ".venv-bench" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
DOCS = 192  # docstrings to train on: 24 steps of 8, once through them
ALL = {"task": "helpdesk", "train_examples": 0}
EPOCH = {"task": "helpdesk", "train_examples": 480, "steps": 30}  # of 16: once through 40 texts a topic
FEW = {"task": "helpdesk", "train_examples": 96}
SMALL = {"train_examples": 48, "steps": 2, "iterations": 1}  # of --quick, where a row has such an option

# The rate that the library or the paper gives, which large models bear, and ten times that, for small ones. A peer has
# them by turns, and the page tells of the one that is better on `validation`.
FULL, LORA, PROMPT = (5e-5, 5e-4), (1e-3, 1e-2), (3e-2, 3e-1)  # of Trainer; PEFT's quick tour; PEFT's prompt tuning
TRAINER, PEFT = "Trainer's usual recipe", "PEFT's example style"

ROWS = [  # row, our side, options of both sides, pairs of runs, {peer: (its side, what only it is told)}
    ("features, topics", "features", ALL, 3, {"sentence-transformers": ("embed", {})}),
    ("features, 10,000 rows of 77 labels", "features", {"task": "many", "train_examples": 0}, 1,
     {"sentence-transformers": ("embed", {})}),
    ("LoRA, topics", "topics", EPOCH | {"technique": "LoRA q,v"}, 2,
     {TRAINER: ("topics", {"style": "Trainer", "rate": LORA}), PEFT: ("topics", {"style": "PEFT", "rate": LORA})}),
    ("everything, topics", "topics", EPOCH | {"technique": "everything"}, 2,
     {TRAINER: ("topics", {"style": "Trainer", "rate": FULL})}),
    ("LoRA, docstrings", "language", {"technique": "lora", "steps": 24}, 2,
     {TRAINER: ("language", {"style": "Trainer", "rate": LORA})}),
    ("QLoRA, docstrings", "language", {"technique": "qlora", "steps": 24}, 2,
     {TRAINER: ("language", {"style": "Trainer", "rate": LORA})}),
    ("soft prompt, docstrings", "language", {"technique": "prompt", "steps": 24}, 2,
     {PEFT: ("language", {"style": "PEFT", "rate": PROMPT})}),
    ("8 examples a topic", "features", FEW, 2, {"SetFit": ("setfit", {"iterations": 5})}),
    ("32 examples a topic", "features", FEW | {"train_examples": 384}, 1, {"SetFit": ("setfit", {"iterations": 2})}),
    ("generation", "generation", {}, 2, {"generate, one by one": ("generation", {})}),
]  # fmt: skip
LIMITED = ("features, topics", "LoRA, topics", "everything, topics", "LoRA, docstrings", "QLoRA, docstrings",
           "soft prompt, docstrings")  # fmt: skip
GROWTH = {"texts": (1_000, 4_000, 20_000), "labels": (2, 20, 150), "tokens": (64, 256, 1_000), "rank": (1, 16, 256)}
GROWTH |= {"prompt": (1, 20, 200), "width": (128, 512, 1_024)}


def every():
    """Every measurement in its order: (row, side and pair, module, function, its options)."""
    for row, side, options, pairs, peers in ROWS:
        for pair in range(pairs):
            sides = [("ours", "ours", side, options)]
            for peer, (its, more) in peers.items():
                rate = {"rate": more["rate"][pair % 2]} if "rate" in more else {}
                sides.append((peer, "peers", its, options | more | rate))
            for name, module, function, told in sides[:: -1 if pair % 2 else 1]:  # who begins changes
                yield (row, name, pair), module, function, told | {"seed": pair}
        if row in LIMITED:
            few = {"steps": 4} if "steps" in options else {}
            yield (row, "matrix products", 0), "limits", "products", {"side": side, "seed": 0} | options | few
    yield ("generation", "memory", 0), "limits", "reading", {}
    for pair in range(5):
        for policy in ("PASSIVE", "unset"):
            told = {"steps": 5, "policy": policy}
            yield ("a busy machine", f"alone, OMP_WAIT_POLICY {policy}", pair), "limits", "busy", told
    for part, values in GROWTH.items():
        yield ("growth", part, 0), "limits", "growth", {"part": part, "values": values}


def jobs(quick):
    """All of `every`, or one of each at tiny sizes."""
    for who, module, function, told in every():
        tiny = SMALL | {"values": told.get("values", ())[:2]}
        if not quick:
            yield who, module, function, told
        elif who[-1] == 0:
            yield who, module, function, told | {name: value for name, value in tiny.items() if name in told}


def make_peers():
    """What the peers need, in .venv-bench: made once, and again after a change of what is required."""
    needs, stamp = ROOT / "benchmarks" / "requirements.txt", ROOT / ".venv-bench" / ".done"
    changed = max(path.stat().st_mtime for path in (needs, ROOT / "requirements.txt"))
    if not stamp.exists() or stamp.stat().st_mtime < changed:
        subprocess.run([sys.executable, "-m", "venv", ROOT / ".venv-bench"], check=True)
        subprocess.run([PEERS, "-m", "pip", "install", "--quiet", "-r", needs], check=True)
        stamp.touch()


def start(module, function, options):
    """Run it in a process of its own; what it found. A failure ends the benchmark, and says what it wrote."""
    about = os.environ | {"PYTHONPATH": str(ROOT), "BENCH_FOLDER": str(benchmarks.FOLDER), "MPLBACKEND": "Agg"}
    about |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    about["OMP_WAIT_POLICY"] = options.get("policy", "PASSIVE")
    if about["OMP_WAIT_POLICY"] == "unset":
        del about["OMP_WAIT_POLICY"]
    told = [PEERS if module == "peers" else sys.executable, "-m", f"benchmarks.{module}", function, json.dumps(options)]
    done = subprocess.run(told, cwd=ROOT, env=about, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{module} {function} {options} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bench(quick, row):
    """Run what is not in measured.jsonl yet."""
    folder, begun = benchmarks.FOLDER, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "measured.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    finished = {(line["row"], line["side"], line["pair"]) for line in lines}
    todo = [job for job in jobs(quick) if job[0] not in finished and row in ", ".join(job[0][:2])]
    make_peers()
    if not (folder / "data.json").exists():
        start("ours", "prepare", {"quick": quick})
    here = {"date": datetime.date.today().isoformat(), "hardware": hardware()}
    for number, (who, module, function, told) in enumerate(todo, 1):
        line = dict(zip(("row", "side", "pair"), who)) | {"module": module, "rate": told.get("rate")} | here
        line |= start(module, function, told)
        with log.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{number} of {len(todo)}, {(time.monotonic() - begun) / 60:.1f} min: {who}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every row once, at tiny sizes")
    parser.add_argument("--row", default="", metavar="TEXT", help="only rows and sides with this in their name")
    parser.add_argument("--record", action="store_true", help="write benchmarks/measured.json and docs/speed.md")
    options = parser.parse_args()
    if options.quick and options.record:
        parser.error("a --quick run is no measurement: there is nothing to --record")
    if options.quick:
        benchmarks.FOLDER = benchmarks.FOLDER / "quick"
    if options.record:
        from benchmarks import page  # imports torch

        page.record()
    else:
        bench(options.quick, options.row)
