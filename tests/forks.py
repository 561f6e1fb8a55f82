"""Runs scale/train.py in forks of one process, which has imported what takes seconds; in each a moment can be its last.

`python tests/forks.py` reads jobs from stdin, one JSON object a line, and answers each with a line of JSON.
"""

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Runs:
    """The process that forks; in a `with` block. `run` waits for a job, and returns status and what was said."""

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.process = subprocess.Popen([sys.executable, __file__], **pipes)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)

    def run(self, recipe, *, resume=False, processes=1, **patches):
        """Run a recipe file; see `patch` for the patches. Returns the exit status of each process, and the text."""
        job = {"recipe": str(recipe), "resume": resume, "processes": processes, "patches": patches}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["statuses"], answer["said"]


def patch(last=None, full=None, double=False):
    """What is done to a run before it starts.

    Args:
        last: name of a function, number of its call, and a SIGKILL "before" it, "after" it, or after it with "half" of
            the file that it wrote.
        full: name of a function and number of the call from which on no file grows above 4 KiB, as on a full disk.
        double: compute in 64 bits.
    """
    import torch

    import helpers

    if last:
        name, number, when = last
        wrap(name, number, lambda: die() if when == "before" else None, lambda *told: end(when, *told))
    if full:
        wrap(*full, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    if double:
        load = helpers.load_language_model
        helpers.load_language_model = lambda *told, **options: load(*told, **options | {"dtype": torch.float64})


def wrap(name, number, before, after=lambda *_: None):
    """Call `before` and `after` around one call of a function, such as `torch.save`."""
    module, *inner = name.split(".")
    owner = importlib.import_module(module)
    for part in inner[:-1]:
        owner = getattr(owner, part)
    original, calls = getattr(owner, inner[-1]), []

    def wrapped(*told, **options):
        calls.append(told)
        if len(calls) == number:
            before()
        found = original(*told, **options)
        if len(calls) == number:
            after(*told)
        return found

    setattr(owner, inner[-1], wrapped)


def end(when, *told):
    if when == "half":
        path = next(Path(part) for part in told[::-1] if isinstance(part, str | Path))
        os.truncate(path, path.stat().st_size // 2)
    die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def work(job, rank, port, out):
    """One process of a job; never returns."""
    status = 70
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        if job["processes"] > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
            os.environ["LOCAL_WORLD_SIZE"] = str(job["processes"])
        import train

        patch(**job["patches"])
        status = train.main([job["recipe"], *["--resume"] * job["resume"]])
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
        os._exit(status)


def serve():
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        out = os.memfd_create("said")
        children = []
        for rank in range(job["processes"]):
            if not (child := os.fork()):
                work(job, rank, port, out)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.lseek(out, 0, os.SEEK_SET)
        with os.fdopen(out, encoding="utf-8") as said:
            answer = {"statuses": statuses, "said": said.read()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "scale")]
    import helpers  # noqa: F401

    # isort: split
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401
    import yaml  # noqa: F401

    serve()
