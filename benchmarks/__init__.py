"""Speed of what the notebooks do, beside what people run instead, and beside the limit: `make bench`.

`run` has the table of rows and drives them, each measurement in a process of its own: `ours` executes cells of the
notebooks, `peers` is what people run instead (it knows nothing of `helpers`, and has an environment of its own),
`limits` is the machine. `page` writes docs/speed.md. Here stands what both sides share.
"""

import json
import math
import os
import re
import sys
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("BENCH_FOLDER", ROOT / "results" / "bench"))
JUDGED = ("validation", "test")  # rates are chosen on the first, the page tells the second


class Clock:
    """Seconds of a `with` block, and the peak memory of the process in it, in MiB."""

    def __enter__(self):
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: what was before does not count
        self.before, self.started = memory()[1], time.perf_counter()

    def __exit__(self, *failure):
        self.found = {"seconds": time.perf_counter() - self.started, "peak_mib": memory()[0]}
        self.found["added_mib"] = self.found["peak_mib"] - self.before


def memory():
    """Peak and present memory of this process, in MiB; only Linux tells."""
    if sys.platform != "linux":
        return [math.nan, math.nan]
    found = re.findall(r"Vm(?:HWM|RSS):\s+(\d+)", Path("/proc/self/status").read_text())
    return [int(kib) / 2**10 for kib in found]


def main(module):
    """Run one side, a function of the module, in this process: name and options come in, a line of JSON goes out."""
    clock, path = Clock(), FOLDER / "data.json"
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = module[sys.argv[1]](data, clock, **json.loads(sys.argv[2]))
    print("\n" + json.dumps(getattr(clock, "found", {}) | found))


def accuracy(answers, targets):
    """Percent right on each of JUDGED."""
    right = {s: [int(a) == int(b) for a, b in zip(answers[s], targets[s])] for s in JUDGED}
    return {"measure": "accuracy"} | {split: 100 * mean(marks) for split, marks in right.items()}


def perplexity(model, rows):
    """Of the replies on each of JUDGED, one at a time and in float32: the same measure for both sides."""
    import torch

    found = {"measure": "perplexity"}
    for split in JUDGED:
        with torch.no_grad():
            batches = ({name: torch.tensor([ids]) for name, ids in row.items()} for row in rows[split])
            losses = [model.eval()(**batch, use_cache=False).loss.item() for batch in batches]
        found[split] = math.exp(min(99.0, mean(losses)))  # a rate that is too high ends in NaN: the minimum is 99
    return found
