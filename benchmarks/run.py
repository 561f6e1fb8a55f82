"""Runs the benchmark: each measurement in a process of its own, ours and theirs by turns.

    python -m benchmarks.run [--quick] [--row TEXT] [--pairs N] [--record]

A finished measurement is a line in results/bench/measured.jsonl, and is not run again; delete the file to begin anew.
`--quick` tries every row at tiny sizes, in a folder of its own; `--record` takes what is finished to
benchmarks/measured.json and writes docs/speed.md. Only the standard library is imported here, so that nothing of this
process is beside what is measured.
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

HERE = sys.executable
PEERS = ROOT / ".venv-bench" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TOPICS = {"task": "helpdesk", "train_examples": 0}
EPOCH = TOPICS | {"steps": 75}  # of 16: once through all 1,200 texts
FEW = {"task": "helpdesk", "few": True}
SMALL = {"steps": 2, "iterations": 1}  # of --quick, where a row has such an option

# Row: our side, its options, and for each peer its side and what only it is told; pairs of runs. Both sides are given
# the same options, so that they have the same texts and steps.
ROWS = {
    "features, topics": ("features", TOPICS, {"sentence-transformers": ("sentence_transformers", {})}, 5),
    "features, 10,000 rows of 77 labels": (
        "features", {"task": "many", "train_examples": 0}, {"sentence-transformers": ("sentence_transformers", {})}, 3,
    ),
    "LoRA, topics": (
        "topics", EPOCH | {"technique": "LoRA q,v"},
        {"Trainer's usual recipe": ("topics", {}), "PEFT's example style": ("topics", {"style": "PEFT"})}, 3,
    ),
    "everything, topics": (
        "topics", EPOCH | {"technique": "everything"}, {"Trainer's usual recipe": ("topics", {})}, 3,
    ),
    "LoRA, docstrings": (
        "language", {"technique": "lora", "steps": 30}, {"Trainer's usual recipe": ("language", {})}, 5,
    ),
    "QLoRA, docstrings": (
        "language", {"technique": "qlora", "steps": 20}, {"Trainer's usual recipe": ("language", {})}, 3,
    ),
    "soft prompt, docstrings": (
        "language", {"technique": "prompt", "steps": 30}, {"PEFT's example style": ("language", {})}, 5,
    ),
    "8 examples a topic": (
        "features", FEW | {"train_examples": 96}, {"SetFit": ("setfit", {"iterations": 10})}, 3,
    ),
    "32 examples a topic": (
        "features", FEW | {"train_examples": 384}, {"SetFit": ("setfit", {"iterations": 4})}, 3,
    ),
    "generation": ("generation", {}, {"generate, one by one": ("generation", {})}, 3),
}  # fmt: skip
LIMITS = {  # side of `ours`, options
    "features, topics": ("features", TOPICS | {"seed": 0}),
    "LoRA, topics": ("topics", EPOCH | {"technique": "LoRA q,v", "steps": 20, "seed": 0}),
    "everything, topics": ("topics", EPOCH | {"technique": "everything", "steps": 20, "seed": 0}),
    **{
        f"{name}, docstrings": ("language", {"technique": technique, "steps": 20, "seed": 0})
        for name, technique in {"LoRA": "lora", "QLoRA": "qlora", "soft prompt": "prompt"}.items()
    },
}
GROWTH = {"texts": (250, 1_000, 4_000, 20_000), "labels": (2, 10, 50, 150), "tokens": (64, 128, 256, 512, 1_000)}
GROWTH |= {"rank": (1, 4, 16, 64, 256), "prompt": (1, 5, 20, 50, 200), "width": (128, 256, 512, 1_024, 1_536)}


def jobs(quick, pairs):
    """Every measurement in its order: (who, python, module, side, options, OMP_WAIT_POLICY)."""

    def sized(options):
        smaller = SMALL | ({"train_examples": 48} if options.get("task") == "helpdesk" else {})
        return options | {name: value for name, value in smaller.items() if quick and name in options}

    for row, (side, options, peers, usual) in ROWS.items():
        for pair in range(1 if quick else pairs or usual):
            both = sized(options) | {"seed": pair}
            sides = [("ours", HERE, "benchmarks.ours", side, both)]
            sides += [
                (name, PEERS, "benchmarks.peers", peer, both | sized(more)) for name, (peer, more) in peers.items()
            ]
            for name, *how in sides[:: -1 if pair % 2 else 1]:  # who begins changes
                yield {"row": row, "side": name, "pair": pair}, *how, "PASSIVE"
    for row, (side, options) in LIMITS.items():
        told = {"side": side, "options": sized(options)}
        yield {"row": row, "side": "limit", "pair": 0}, HERE, "benchmarks.limits", "limit", told, "PASSIVE"
    yield {"row": "generation", "side": "limit", "pair": 0}, HERE, "benchmarks.limits", "reading", {}, "PASSIVE"
    for pair in range(1 if quick else 5):
        for policy in ("PASSIVE", None):
            who = {"row": "a busy machine", "side": policy or "unset", "pair": pair}
            yield who, HERE, "benchmarks.limits", "busy", {"steps": 2 if quick else 10}, policy
    for part, values in GROWTH.items():
        told = {"part": part, "values": values[: 2 if quick else None]}
        yield {"row": "growth", "side": part, "pair": 0}, HERE, "benchmarks.limits", "growth", told, "PASSIVE"


def make_peers():
    """What the peers need, in .venv-bench: made once, and again after a change of what is required."""
    needs, stamp = ROOT / "benchmarks" / "requirements.txt", ROOT / ".venv-bench" / ".done"
    changed = max(path.stat().st_mtime for path in (needs, ROOT / "requirements.txt"))
    if not stamp.exists() or stamp.stat().st_mtime < changed:
        subprocess.run([sys.executable, "-m", "venv", ROOT / ".venv-bench"], check=True)
        subprocess.run([PEERS, "-m", "pip", "install", "--quiet", "-r", needs], check=True)
        stamp.touch()


def start(python, module, *told, policy="PASSIVE"):
    """Run a module in a process of its own; what it printed. A failure ends the benchmark, and says what it wrote."""
    about = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    about |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    about |= {"OMP_WAIT_POLICY": policy} if policy else {}
    about |= {"BENCH_FOLDER": str(benchmarks.FOLDER), "MPLBACKEND": "Agg"}
    done = subprocess.run([python, "-m", module, *told], cwd=ROOT, env=about, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{module} {' '.join(told)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def bench(quick, row, pairs):
    """Run what is not in measured.jsonl yet."""
    folder = benchmarks.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    log, begun = folder / "measured.jsonl", time.monotonic()
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    finished = [json.loads(line)["who"] for line in lines]
    todo = [job for job in jobs(quick, pairs) if job[0] not in finished and row in f"{job[0]['row']}, {job[0]['side']}"]
    make_peers()
    if not (folder / "data.json").exists():
        sides = [told for *_, told, _ in jobs(quick, pairs) if "task" in told]
        draws = sorted({(told["task"], told["train_examples"], told["seed"]) for told in sides})
        start(HERE, "benchmarks.ours", "prepare", json.dumps({"draws": draws, "quick": quick}))
    for number, (who, python, module, side, told, policy) in enumerate(todo, 1):
        before = time.monotonic()
        found = json.loads(start(python, module, side, json.dumps(told), policy=policy).splitlines()[-1])
        found |= {"process_seconds": time.monotonic() - before}
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"who": who, "options": told, "found": found}) + "\n")
        spent = (time.monotonic() - begun) / 60
        print(f"{number} of {len(todo)}, {spent:.1f} min: {who} {found.get('seconds', 0):.1f} s", flush=True)


def record(quick):
    """Take what is finished to benchmarks/measured.json, with where and when, and write the page and the figure."""
    about = start(HERE, "benchmarks.limits", "about", "{}").splitlines()[-1]
    about = json.loads(about) | {
        "command": f"make bench{' ARGS=--quick' * quick}",
        "date": datetime.date.today().isoformat(),
    }
    lines = (benchmarks.FOLDER / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    text = ",\n".join([json.dumps(about), *lines])
    (ROOT / "benchmarks" / "measured.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    start(HERE, "benchmarks.page")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every row once, at tiny sizes")
    parser.add_argument("--row", default="", metavar="TEXT", help="only rows and sides with this in their name")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="pairs of runs (default: those of the row)")
    parser.add_argument("--record", action="store_true", help="write benchmarks/measured.json and docs/speed.md")
    options = parser.parse_args()
    if options.quick:
        benchmarks.FOLDER = benchmarks.FOLDER / "quick"
    if options.record:
        record(options.quick)
    else:
        bench(options.quick, options.row, options.pairs)
