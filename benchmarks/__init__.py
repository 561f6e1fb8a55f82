"""Speed of what the notebooks do, beside what people run instead, and beside the limit: `make bench`.

`ours` executes cells of the notebooks, `peers` is what people run instead (it knows nothing of `helpers` and runs in an
environment of its own), `limits` measures the machine, the profile, a busy machine and growth, `run` drives them, each
measurement in a process of its own, and `page` writes docs/speed.md. This file is what both sides share.
"""

import json
import os
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINUX = sys.platform == "linux"
FOLDER = Path(os.environ.get("BENCH_FOLDER", ROOT / "results" / "bench"))


class Clock:
    """Seconds of a `with` block, of the clock and of all cores, and the peak memory of the process in it, in MiB."""

    def __init__(self, *around):
        self.around, self.found = around, {}

    def __enter__(self):
        self.stack = ExitStack()
        for manager in self.around:
            self.stack.enter_context(manager)
        if LINUX:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: what was before does not count
        self.before, self.started, self.used = memory()[1], time.perf_counter(), time.process_time()

    def __exit__(self, *failure):
        self.found = {"seconds": time.perf_counter() - self.started, "cpu_seconds": time.process_time() - self.used}
        self.found |= {"peak_mib": memory()[0], "added_mib": memory()[0] - self.before}
        self.stack.__exit__(*failure)


def memory():
    """Peak and present memory of this process, in MiB; the peak twice where there is no /proc."""
    if LINUX:
        found = re.findall(r"Vm(?:HWM|RSS):\s+(\d+)", Path("/proc/self/status").read_text())
        return [int(kib) / 2**10 for kib in found]
    import resource

    return 2 * [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]  # macOS counts bytes


def main(sides):
    """Run one side in this process: its name and options come in, one line of JSON goes out."""
    clock, data = Clock(), json.loads((FOLDER / "data.json").read_text(encoding="utf-8"))
    scores = sides[sys.argv[1]](data, clock, **json.loads(sys.argv[2]))
    print("\n" + json.dumps(clock.found | scores))


def key_of(task, train_examples, seed):
    """Under which name data.json holds a draw of a task."""
    return f"{task}, {train_examples} examples, seed {seed}" if train_examples else task


def perplexity(model, rows, padding):
    """Of the replies in rows of token ids, in float32: the same measure for both sides."""
    import torch

    total = count = 0
    model.eval()
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16]
        longest = max(len(row["input_ids"]) for row in some)
        fills = {"input_ids": padding, "attention_mask": 0, "labels": -100}
        batch = {k: torch.tensor([row[k] + [v] * (longest - len(row[k])) for row in some]) for k, v in fills.items()}
        learned = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            total += model(**batch, use_cache=False).loss.item() * learned
        count += learned
    return {"perplexity": 2.718281828459045 ** (total / count)}
