"""What `tools.run_notebooks` does in other processes: execute one notebook, and watch its kernel's threads.

Imports nothing of `helpers`: a kernel in which torch is loaded before the first cell is not the one
that a reader has.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

THREAD_LOG = "TUTORIAL_THREAD_LOG"  # environment variable with the file for exceptions in threads


def execute_job(folder: Path) -> None:
    """Execute `folder/input.ipynb` as `job.json` says, and tell `events.jsonl` what happens."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _write_kernelspec(folder / "jupyter" / "kernels" / "python3", job["python"], job["environment"])
    with (folder / "events.jsonl").open("a", encoding="utf-8") as events:

        def tell(event: str, **more: str) -> None:
            events.write(json.dumps({"event": event, "time": time.time(), **more}) + "\n")
            events.flush()

        def executed(cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
            if execute_reply["content"]["status"] == "ok":
                tell("end", cell=cell.id)

        try:
            papermill.execute_notebook(
                folder / "input.ipynb",
                folder / "output.ipynb",
                parameters=job["parameters"],
                kernel_name="python3",
                language="python",
                cwd=job["cwd"],
                progress_bar=False,
                execution_timeout=job["cell_timeout"],
                coalesce_streams=True,  # or a text that is printed piece by piece is not found whole
                on_cell_execute=lambda cell, cell_index: tell("start", cell=cell.id),
                on_cell_executed=executed,
            )
        except PapermillExecutionError as error:
            tell("error", kind="code", message=f"{error.ename}: {error.evalue}")
        except CellTimeoutError:
            tell("error", kind="time-out")
        except DeadKernelError:
            tell("error", kind="dead")
        except Exception as error:  # whatever it is, the parent must hear of it
            tell("error", kind="other", message=f"{type(error).__name__}: {error}")
        else:
            tell("done")


def watch_threads() -> None:
    """In the kernel: keep a note of every exception that ends a thread.

    Its message on stderr is lost when the cell that started the thread has already finished.
    """
    usual = threading.excepthook

    def note(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_type is not SystemExit:
            with open(os.environ[THREAD_LOG], "a", encoding="utf-8") as log:
                log.write(f"{failure.exc_type.__name__}: {failure.exc_value}\n")
        usual(failure)

    threading.excepthook = note


def _write_kernelspec(folder: Path, python: str, environment: dict[str, str]) -> None:
    # An own kernelspec: one named python3 that the user or the system has may start another Python.
    from ipykernel.kernelspec import get_kernel_dict

    watch = '__import__("tools.notebook_process", fromlist=["_"]).watch_threads()'
    folder.mkdir(parents=True)
    spec = get_kernel_dict(extra_arguments=[f"--IPKernelApp.exec_lines={watch}"])
    spec["argv"][0], spec["env"] = python, environment
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


if __name__ == "__main__":
    execute_job(Path(sys.argv[1]))
