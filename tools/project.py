"""Sets up .venv if need be, then does one thing in it.

    python tools/project.py setup          make .venv, or do nothing when it is up to date
    python tools/project.py run [ARGS]     execute the notebooks (python -m tools.run_notebooks ARGS)
    python tools/project.py test [ARGS]    run the tests (python -m pytest ARGS)
    python tools/project.py lab            open JupyterLab in notebooks/
    python tools/project.py measurements   record the long runs in data/measurements (tools/measure.py)
    python tools/project.py test-platforms run the notebooks on Colab's and Kaggle's versions (tools/platforms.py)
    python tools/project.py offline-kit    write a folder that installs and runs without a network
    python tools/project.py links          write the repository's address into notebooks and README (tools/links.py)
    python tools/project.py lint [PATHS]   ruff check and ruff format --check
    python tools/project.py clean          remove .venv and results

Only the standard library, and syntax that every Python still in use can read: a wrong one gets one clear line, not a
SyntaxError.
"""

from __future__ import print_function

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time

SUPPORTED = ((3, 11), (3, 12), (3, 13))
NEEDED_GB = 4  # the finished .venv takes 2.2 GB with PyTorch's CPU build; the rest is pip's downloads and a margin
CUDA_GB = 12  # an estimate, with PyTorch's CUDA build, which most package indexes give on Linux

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "complete.json")  # written last: without it, a set-up was interrupted
LOG = os.path.join(VENV, "setup.log")
PIP_LOG = os.path.join(VENV, "pip.log")
LOCK = os.path.join(ROOT, ".venv.lock")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")


# What a command runs in .venv; setup, lint and clean are no modules.
MODULES = {
    "run": ["tools.run_notebooks"],
    "test": ["pytest"],
    "lab": ["jupyterlab", "notebooks"],
    "measurements": ["tools.measure"],
    "test-platforms": ["tools.platforms"],
    "offline-kit": ["tools.offline_kit"],
    "links": ["tools.links"],
}
COMMANDS = ("setup", "lint", "clean") + tuple(MODULES)


class Problem(Exception):
    """What is wrong and what to do, in one line."""


def say(text):
    print(text)
    sys.stdout.flush()


# ---------------------------------------------------------------- which Python


def dotted(version):
    return "%d.%d" % tuple(version[:2])


def probe(command):
    """(version, has venv, path) of a Python, or None where `command` starts none."""
    code = (
        "import importlib.util as u, json, sys;"
        "has = all(u.find_spec(m) for m in ('venv', 'ensurepip'));"
        "print(json.dumps([sys.version_info[:2], has, sys.executable]))"
    )
    try:
        with open(os.devnull, "w") as null:
            output = subprocess.check_output(command + ["-c", code], stderr=null, universal_newlines=True)
        version, has_venv, path = json.loads(output)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return tuple(version), has_venv, path


def other_python():
    """Path of another Python that can do it, or None. The one in .venv comes first: it costs no search."""
    commands = [[PYTHON]] + [["python" + v] for v in ("3.12", "3.13", "3.11")]
    if os.name == "nt":
        commands += [["py", "-" + v] for v in ("3.12", "3.13", "3.11")]
    for command in commands:
        found = probe(command)
        if found and found[0] in SUPPORTED and found[1]:
            return found[2]
    return None


def has_venv():
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def python_problem():
    """None if the running Python will do, else what is wrong with it and the remedy."""
    version = dotted(sys.version_info)
    if tuple(sys.version_info[:2]) not in SUPPORTED:
        return (
            "Python %s runs this, but 3.11, 3.12 or 3.13 is needed and none is on PATH: install one, "
            "or name it: make setup PYTHON=/path/to/python3.12" % version
        )
    if not has_venv():
        return (
            "Python %s (%s) has no venv module: install it (Debian, Ubuntu: sudo apt install python%s-venv) "
            "and repeat the command" % (version, sys.executable, version)
        )
    return None


# ---------------------------------------------------------------- is .venv up to date?


def sha256(name):
    with open(os.path.join(ROOT, name), "rb") as handle:
        return hashlib.sha256(handle.read()).hexdigest()


def wanted():
    """What the stamp of an up-to-date .venv says. A .venv knows its own path, so a moved folder counts as a change."""
    return {
        "requirements.txt": sha256("requirements.txt"),
        "pyproject.toml": sha256("pyproject.toml"),
        "python": dotted(sys.version_info),
        "folder": os.path.realpath(ROOT),
    }


def outdated():
    """None if .venv is complete and up to date, else the reason why it is not."""
    if not os.path.exists(VENV):
        return "there is no .venv yet"
    try:
        with open(STAMP) as handle:
            stamp = json.load(handle)
        if not isinstance(stamp, dict):
            raise ValueError
    except (OSError, IOError, ValueError):
        return ".venv is incomplete (a set-up was interrupted, or something else made it)"
    if not os.path.isfile(PYTHON):
        return "the Python that .venv was made with is gone"
    for key, value in sorted(wanted().items()):
        if stamp.get(key) != value:
            if key == "python":
                return "Python is %s now, it was %s" % (value, stamp.get(key))
            return "%s has changed" % key
    return None


# ---------------------------------------------------------------- making it


@contextlib.contextmanager
def lock():
    """One set-up at a time. The lock goes away with the process; pip inherits it, so it outlives a killed parent."""
    handle = open(LOCK, "a")  # noqa: SIM115
    try:
        waits = False
        while True:
            try:
                if os.name == "nt":
                    import msvcrt

                    handle.seek(0)
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (OSError, IOError) as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                    break  # a file system without locks
                if not waits:
                    say("Another set-up is at work in this folder; waiting for it.")
                    waits = True
                time.sleep(0.5)
        yield handle
    finally:
        handle.close()


def clear(folder):
    """Empties a folder, the stamp first. The folder stays: it may be a link to a larger disk."""
    if not os.path.isdir(folder):
        if os.path.lexists(folder):
            os.remove(folder)
        return
    if os.path.exists(STAMP):
        os.remove(STAMP)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def check_disk():
    place = os.path.realpath(VENV if os.path.isdir(VENV) else ROOT)
    free = shutil.disk_usage(place).free / 1e9
    if free < NEEDED_GB:
        raise Problem(
            "too little disk: .venv needs %d GB and %.1f GB are free in %s: free some, or make .venv a link to a "
            "folder on a larger disk, and repeat the command" % (NEEDED_GB, free, place)
        )
    if sys.platform.startswith("linux") and free < CUDA_GB:
        say(
            "  %.1f GB are free. That is enough with PyTorch's CPU build; the CUDA build, which most indexes give on "
            "Linux, needs %d GB (PIP_EXTRA_INDEX_URL can name PyTorch's CPU index)." % (free, CUDA_GB)
        )


class Progress:
    """What pip does: one changing line on a terminal, elsewhere a line now and then."""

    def __init__(self):
        self.start = self.last = time.time()
        self.terminal = sys.stdout.isatty()
        self.shown = ""

    def step(self, text):
        self.clear_line()
        say("  [%4d s] %s" % (time.time() - self.start, text))
        self.last = time.time()

    def pip(self, line):
        match = re.match(r"\s*(Collecting|Downloading|Processing|Using cached) (\S+)", line)
        if not match:
            return
        text = "  [%4d s] %s %s" % (time.time() - self.start, match.group(1), os.path.basename(match.group(2)))
        if self.terminal:
            self.clear_line()
            self.shown = text[:78]
            sys.stdout.write(self.shown)
            sys.stdout.flush()
        elif time.time() - self.last > 20:
            say(text)
            self.last = time.time()

    def clear_line(self):
        if self.shown:
            sys.stdout.write("\r" + " " * len(self.shown) + "\r")
            self.shown = ""


def call(command, handle, progress):
    """Runs a command of the set-up; its output goes to setup.log. (exit status, output)"""
    options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if os.name == "posix":
        options["pass_fds"] = [handle.fileno()]
    lines = []
    process = subprocess.Popen(command, universal_newlines=True, errors="replace", **options)
    try:
        with open(LOG, "a") as log:
            for line in process.stdout:
                lines.append(line.rstrip())
                log.write(line)
                if line.startswith("Installing collected packages") and "," in line:
                    progress.step("installing %d packages" % (line.count(",") + 1))
                else:
                    progress.pip(line)
        return process.wait(), lines
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        progress.clear_line()


def pip_problem(lines):
    """One line for a pip that failed, out of all that it wrote."""
    text = "\n".join(lines)
    errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
    last = (errors or [line for line in lines if line.strip()] or ["no output"])[-1]
    if "No space left on device" in text or "[Errno 28]" in text:
        return (
            "a disk is full (pip: %s): free some of the one with %s or the one for temporary files, "
            "or set TMPDIR and PIP_CACHE_DIR to a larger one, and repeat the command" % (last, ROOT)
        )
    if re.search(r"Read-only file system|Permission denied", text):
        return folder_problem(ROOT, last)
    network = r"(Connection|Timeout|Proxy|SSL|NameResolution|MaxRetry)\w*Error"
    unreachable = unreachable_index()
    if unreachable or re.search(network, text):
        return (
            "no network to the package index (pip: %s%s): connect, or set PIP_INDEX_URL to an index that can be "
            "reached, or PIP_NO_INDEX=1 with PIP_FIND_LINKS=folder of wheels, and repeat the command"
            % (last, "; " + unreachable if unreachable else "")
        )
    if "No matching distribution" in last:
        where = "Python %s on %s %s" % (dotted(sys.version_info), platform.system(), platform.machine())
        return (
            "the place where pip looks has no build for %s (pip: %s): use an index that has it, or add the wheel to "
            "the folder in PIP_FIND_LINKS; PyTorch has no builds for Intel Macs and 32-bit or ARM Windows, use Colab "
            "or Kaggle there" % (where, last)
        )
    return "pip failed (%s): all it wrote is in %s" % (last, LOG)


def unreachable_index():
    """Why pip could not ask an index, or "". Only its own log says so whatever its settings are."""
    try:
        with open(PIP_LOG, errors="replace") as log:
            reasons = re.findall(r"Could not fetch URL \S+ (?!404)(.*) - skipping", log.read())
    except OSError:
        return ""
    if not reasons:
        return ""
    causes = re.findall(r"\[(?:Errno|SSL)[^'\")]*", reasons[-1])
    return causes[-1] if causes else reasons[-1][:120]


def folder_problem(path, why):
    return (
        "%s cannot be written (%s): copy the repository to a folder of your own, or make this one writable, and repeat "
        "the command" % (path, why)
    )


def build(handle, reason):
    progress = Progress()
    about = (reason, VENV, platform.python_version())
    say("Set-up, once: %s. About 2 GB and a few minutes, into %s with Python %s." % about)
    clear(VENV)
    check_disk()
    progress.step("new environment")
    if not os.path.isdir(VENV):
        os.mkdir(VENV)
    base = getattr(sys, "_base_executable", None) or sys.executable  # `sys.executable` may be the one in .venv
    status, lines = call([base, "-m", "venv", VENV], handle, progress)
    if status:
        raise Problem("python -m venv failed (%s): all it wrote is in %s" % (lines[-1] if lines else "no output", LOG))
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--log", PIP_LOG]
    progress.step("packages of requirements.txt")
    status, lines = call(pip + ["--only-binary", ":all:", "-r", "requirements.txt"], handle, progress)
    if status:
        raise Problem(pip_problem(lines))
    progress.step("helpers, editable")
    status, lines = call(pip + ["--no-deps", "--no-build-isolation", "-e", "."], handle, progress)
    if status:
        raise Problem(pip_problem(lines))
    with open(STAMP + ".new", "w") as stamp:
        json.dump(wanted(), stamp, indent=1)
    os.replace(STAMP + ".new", STAMP)
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(VENV) for name in names]
    size = sum(os.lstat(path).st_size for path in paths)
    say("Set-up complete in %.0f s; .venv takes %.1f GB." % (time.time() - progress.start, size / 1e9))


def setup():
    if outdated() is None:
        return
    try:
        with lock() as handle:
            reason = outdated()  # another set-up may have finished meanwhile
            if reason:
                build(handle, reason)
    except KeyboardInterrupt:
        raise Problem("interrupted; the next call starts the set-up again")
    except OSError as error:
        path = error.filename or ROOT
        if error.errno == errno.ENOSPC:
            raise Problem("the disk with %s is full: free some and repeat the command" % path)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            if os.name == "nt" and os.path.exists(VENV):
                path += " (or a program uses it: close JupyterLab and terminals where .venv is active)"
            raise Problem(folder_problem(path, os.strerror(error.errno)))
        raise Problem("%s: %s" % (path, os.strerror(error.errno) if error.errno else error))


# ---------------------------------------------------------------- commands


def environment():
    """The environment as if .venv were activated; what would mix in packages from elsewhere is left out."""
    env = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)
    env["VIRTUAL_ENV"] = VENV
    env["PATH"] = BIN + os.pathsep + env.get("PATH", os.defpath)
    return env


def python(*arguments):
    """Runs the Python of .venv in the repository's folder; its exit status."""
    process = subprocess.Popen([PYTHON] + list(arguments), cwd=ROOT, env=environment())
    while True:
        try:
            status = process.wait()
            return status if status >= 0 else 128 - status
        except KeyboardInterrupt:  # the terminal sent it to the command as well, which decides what to do
            pass


def clean():
    for name in (".venv", ".venv.lock", "results"):
        path = os.path.join(ROOT, name)
        if name == ".venv" and os.path.islink(path):
            clear(path)
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)
    return 0


def do(command, arguments):
    if command == "clean":
        return clean()
    problem = python_problem() if tuple(sys.version_info[:2]) not in SUPPORTED or outdated() else None
    if problem:
        path = other_python()
        if path is None:
            raise Problem(problem)
        say("Python %s cannot do this; using %s." % (dotted(sys.version_info), path))
        return subprocess.call([path, os.path.abspath(__file__), command] + arguments)
    setup()
    if command in MODULES:
        return python("-m", *(MODULES[command] + arguments))
    if command == "lint":
        paths = arguments or ["."]
        return python("-m", "ruff", "check", *paths) | python("-m", "ruff", "format", "--check", *paths)
    say("Set up: %s" % VENV)
    return 0


def main(arguments):
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments in ([], ["help"], ["-h"], ["--help"]) else 2
    try:
        return do(arguments[0], arguments[1:])
    except Problem as problem:
        sys.stdout.flush()
        print("Stopped: %s" % problem, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
