"""The set-up: one place for versions, and tools/project.py, whose every failure is one clear line."""

import ast
import errno
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IN_VENV = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
SKIPPED = {
    ".git",
    ".venv",
    ".venv-platforms",
    "offline-kit",
    "results",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".ipynb_checkpoints",
    "build",
}
CUDA = re.compile(r"(nvidia|cuda|triton)\b")

# Modules whose name is not the name of the package that carries them.
PACKAGE_OF = {"sklearn": "scikit-learn", "yaml": "pyyaml", "IPython": "ipykernel"}


def files(*suffixes):
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in SKIPPED and not f.endswith(".egg-info")]
        found += [Path(folder, n) for n in names if not suffixes or n.endswith(suffixes)]
    return sorted(found)


def requirements(part=None):
    """The requirements of requirements.txt: of both parts, of part 1 (direct) or of part 2."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    first, second = text.split("# Part 2:")
    chosen = {None: first + "\n#" + second, 1: first, 2: "#" + second}[part]
    lines = [re.sub(r"\s*#.*", "", line).strip() for line in chosen.splitlines()]
    return [Requirement(line) for line in lines if line]


def requires_python():
    return SpecifierSet(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    )


# ---------------------------------------------------------------- versions in one place


def test_every_requirement_is_pinned_once():
    for requirement in requirements():
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(requirement.specifier)), f"not pinned: {requirement}"
        assert requirement.name == canonicalize_name(requirement.name), f"write {canonicalize_name(requirement.name)}"
        assert not requirement.url and not requirement.extras
        assert not CUDA.match(requirement.name), f"{requirement.name}: PyTorch's CUDA build brings its own"
    names = [requirement.name for requirement in requirements()]
    assert len(names) == len(set(names)), f"twice: {sorted({n for n in names if names.count(n) > 1})}"
    assert len(requirements(1)) > 20 and len(requirements(2)) > 100


def test_each_direct_dependency_says_why():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("# Part 2:")[0]
    for line in text.splitlines():
        if line and not line.startswith("#"):
            assert re.search(r"  # \w.+", line), f"no reason given: {line}"


@pytest.mark.skipif(not IN_VENV, reason="only in the .venv of this repository")
def test_venv_holds_exactly_what_is_listed():
    """Part 2 has all that part 1 needs, and nothing else; what is installed has the listed versions."""
    pinned = {r.name: r for r in requirements() if r.marker is None or r.marker.evaluate()}
    for name, requirement in pinned.items():
        assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True), name

    needed, queue = set(), [Requirement(r.name) for r in requirements(1)]
    seen = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        needed.add(name)
        if (name, frozenset(requirement.extras)) in seen or CUDA.match(name):
            continue
        seen.add((name, frozenset(requirement.extras)))
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in requirement.extras | {""}):
                queue.append(child)
    needed = {name for name in needed if not CUDA.match(name)}
    assert needed == set(pinned), f"missing: {sorted(needed - set(pinned))}; not needed: {sorted(set(pinned) - needed)}"


def test_environment_yml_has_no_versions_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert sorted(re.split("[=<>]", entry)[0] for entry in conda) == ["pip", "python"]
    versions = [entry.split("=", 1)[1] for entry in conda if "=" in entry]
    assert len(versions) == 1 and versions[0] in requires_python()


@pytest.mark.slow
def test_every_pin_exists_for_the_python_of_environment_yml():
    """What conda, mamba and Binder would ask pip for on Linux; conda itself is not needed to know that it exists."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(entry.split("=")[1] for entry in environment["dependencies"] if str(entry).startswith("python="))
    linux = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"}
    wanted = [f"{r.name}{r.specifier}" for r in requirements() if r.marker is None or r.marker.evaluate(linux)]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    command += ["--only-binary", ":all:", "--target", "unused", "--python-version", python]
    # pip does not know that a system with glibc 2.28 takes the wheels of older ones.
    for platform in ["manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 29))]:
        command += ["--platform", platform]
    run = subprocess.run([*command, *wanted], capture_output=True, text=True)
    missing = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
    assert run.returncode == 0, missing


def test_pyproject_lists_no_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not {"dependencies", "optional-dependencies", "dynamic"} & set(project)


def test_every_place_names_the_same_pythons(project):
    supported = {f"{major}.{minor}" for major, minor in project.SUPPORTED}
    every = {f"3.{minor}" for minor in range(30)}
    assert supported == set(requires_python().filter(every))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            matrix = job["strategy"]["matrix"]
            pythons = set(matrix["python"]) | {extra["python"] for extra in matrix.get("include", [])}
            assert pythons and pythons <= supported, f"{path.name}: {pythons}"
            assert any("make test" in step.get("run", "") for step in job["steps"]), path.name


def test_no_index_host_in_any_file():
    """Each reader's pip knows its own index; a name written here would break machines that have another."""
    hosts = ["py" + "pi.org", "python" + "hosted.org", "download." + "pytorch.org", "ana" + "conda.org"]
    url = re.compile(r"index[-_]url\s*[= ]\s*[\"']?(https?|file)://(?!127\.0\.0\.1)", re.IGNORECASE)
    for path in files():
        if path.stat().st_size < 5_000_000:
            text = path.read_bytes().decode("utf-8", errors="replace")
            assert not [host for host in hosts if host in text], path
            assert not url.search(text), path


def imported_modules(path):
    """Top-level modules that a .py file or a notebook imports."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        sources = [re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE) for source in sources]
    else:
        sources = [path.read_text(encoding="utf-8")]
    for source in sources:
        for node in ast.walk(ast.parse(source, str(path))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def test_what_is_imported_is_a_direct_dependency():
    direct = {requirement.name for requirement in requirements(1)}
    own = {"helpers", "pretraining", "tools", "tests", "conftest"} | {path.stem for path in files(".py")}
    platform_only = {"google", "kaggle_secrets"}  # on Colab and Kaggle
    unlisted = {}
    for path in files(".py", ".ipynb"):
        for module in imported_modules(path):
            if module in sys.stdlib_module_names or module in own or module in platform_only:
                continue
            package = PACKAGE_OF.get(module) or canonicalize_name(module)
            if package not in direct:
                unlisted.setdefault(package, set()).add(str(path.relative_to(ROOT)))
    assert not unlisted, f"imported, but not in part 1 of requirements.txt: {unlisted}"


# ---------------------------------------------------------------- hooks


def test_nbstripout_hook_keeps_tags_and_ids(tmp_path):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "a hook from elsewhere would have a version of its own"
    entry = next(hook["entry"] for hook in hooks[0]["hooks"] if hook["id"] == "nbstripout")
    options = re.search(r'-m nbstripout (.*) "\$@"', shlex.split(entry)[2]).group(1)
    cell = {"cell_type": "code", "id": "cell-of-parameters", "execution_count": 3, "source": ["x = 1"]}
    cell["metadata"] = {"tags": ["parameters"], "papermill": {"status": "completed"}}
    cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["1"]}]
    notebook = {
        "cells": [cell],
        "metadata": {"widgets": {"a": {}}, "papermill": {}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook))
    subprocess.run([sys.executable, "-m", "nbstripout", *shlex.split(options), str(path)], check=True)
    stripped = json.loads(path.read_text())
    assert stripped["metadata"] == {}
    assert stripped["cells"][0]["id"] == "cell-of-parameters"
    assert stripped["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert stripped["cells"][0]["outputs"] == [] and stripped["cells"][0]["execution_count"] is None


# ---------------------------------------------------------------- tools/project.py


def small_repository(folder, requirement="six==1.17.0"):
    for name in ("tools/project.py", "pyproject.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "requirements.txt").write_text(requirement + "\n")
    (folder / "helpers").mkdir()
    (folder / "helpers" / "__init__.py").touch()
    return folder


@pytest.fixture
def project(tmp_path):
    """tools/project.py of a small repository, as a module."""
    folder = small_repository(tmp_path / "repository")
    spec = importlib.util.spec_from_file_location("small_project", folder / "tools" / "project.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert Path(module.ROOT) == folder
    return module


@pytest.fixture
def steps(project, monkeypatch):
    """The commands of a set-up, recorded instead of run. `steps.fail[i]` is raised, or returned, by step i."""
    calls = SimpleNamespace(made=[], fail={})

    def call(command, handle, progress):
        step = len(calls.made)
        calls.made.append(" ".join(command[1:]))
        failure = calls.fail.get(step)
        if isinstance(failure, BaseException):
            raise failure
        if failure:
            return failure
        if step == 0:
            os.makedirs(project.BIN, exist_ok=True)
            Path(project.PYTHON).touch()
        return 0, []

    monkeypatch.setattr(project, "call", call)
    monkeypatch.setattr(project, "has_venv", lambda: True)
    monkeypatch.setattr(project.shutil, "disk_usage", lambda path: SimpleNamespace(free=100e9))
    return calls


def stopped(project, capsys, arguments=("setup",)):
    """Runs a command that must stop; its one line."""
    assert project.main(list(arguments)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Stopped: "), lines
    assert not os.path.exists(project.STAMP)
    return lines[0]


def test_any_python_can_read_project_py():
    source = (ROOT / "tools" / "project.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    too_new = (ast.JoinedStr, ast.NamedExpr, ast.Nonlocal, ast.AnnAssign, ast.AsyncFunctionDef)
    found = [node.lineno for node in ast.walk(tree) if isinstance(node, too_new)]
    found += [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.cause]
    assert not found, f"lines that an old Python cannot read: {found}"
    modules = set(imported_modules(ROOT / "tools" / "project.py")) - {"__future__"}
    assert modules <= set(sys.stdlib_module_names)


def test_set_up_does_its_steps_once_and_again_only_after_a_change(project, steps, monkeypatch):
    assert project.main(["setup"]) == 0
    assert len(steps.made) == 3
    assert "venv" in steps.made[0] and "-r requirements.txt" in steps.made[1]
    assert "--no-deps --no-build-isolation -e ." in steps.made[2]
    assert project.main(["setup"]) == 0
    assert len(steps.made) == 3, "an unchanged set-up must do nothing"

    def happens_again(reason):
        assert reason in project.outdated()
        steps.made.clear()
        assert project.main(["setup"]) == 0
        assert len(steps.made) == 3 and project.outdated() is None

    Path(project.ROOT, "requirements.txt").write_text("six==1.16.0\n")
    happens_again("requirements.txt has changed")
    with open(Path(project.ROOT, "pyproject.toml"), "a") as handle:
        handle.write("\n")
    happens_again("pyproject.toml has changed")
    os.remove(project.PYTHON)
    happens_again("is gone")
    Path(project.STAMP).write_text("{")
    happens_again("incomplete")
    stamp = json.loads(Path(project.STAMP).read_text())
    Path(project.STAMP).write_text(json.dumps({**stamp, "python": "3.10"}))
    happens_again("it was 3.10")
    Path(project.STAMP).write_text(json.dumps({**stamp, "folder": "elsewhere"}))
    happens_again("folder has changed")


@pytest.mark.parametrize("step", [0, 1, 2])
def test_interrupted_set_up_is_repeated(project, steps, capsys, step):
    steps.fail[step] = KeyboardInterrupt()
    assert "interrupted; the next call starts the set-up again" in stopped(project, capsys)
    left_over = Path(project.VENV, "left_over")
    left_over.touch()
    steps.fail.clear()
    steps.made.clear()
    assert "incomplete" in project.outdated()
    assert project.main(["setup"]) == 0
    assert len(steps.made) == 3 and not left_over.exists() and project.outdated() is None


def test_second_call_is_fast(project, steps):
    assert project.main(["setup"]) == 0
    start = time.perf_counter()
    subprocess.run([sys.executable, Path(project.ROOT, "tools", "project.py"), "setup"], check=True)
    assert time.perf_counter() - start < 1.5
    assert project.outdated() is None


def test_commands_pass_arguments_and_status_on(project, steps, monkeypatch):
    called = []
    monkeypatch.setattr(project, "python", lambda *arguments: called.append(arguments) or 7)
    assert project.main(["test", "-k", "setup"]) == 7
    assert project.main(["run", "01", "-p", "seed", "1"]) == 7
    assert project.main(["lab"]) == 7
    assert project.main(["lint"]) == 7
    assert called == [
        ("-m", "pytest", "-k", "setup"),
        ("-m", "tools.run_notebooks", "01", "-p", "seed", "1"),
        ("-m", "jupyterlab", "notebooks"),
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
    ]
    assert project.main(["nonsense"]) == 2
    assert project.main(["clean"]) == 0 and not os.path.exists(project.VENV)


def older(version=(3, 8, 0)):
    names = ("executable", "stdout", "stderr", "platform", "prefix")
    return SimpleNamespace(version_info=version, **{name: getattr(sys, name) for name in names})


def test_wrong_python(project, steps, monkeypatch, capsys):
    monkeypatch.setattr(project, "sys", older())
    monkeypatch.setattr(project, "probe", lambda command: ((3, 14), True, "/somewhere/python3"))
    line = stopped(project, capsys)
    assert "Python 3.8" in line and "3.11, 3.12 or 3.13" in line and "PYTHON=" in line
    assert not steps.made


def test_wrong_python_uses_a_right_one(project, steps, monkeypatch, capsys):
    known = {"python3.13": ((3, 13), True, "/somewhere/python3.13"), "python3.12": ((3, 12), False, "no venv module")}
    monkeypatch.setattr(project, "sys", older((3, 14, 0)))
    monkeypatch.setattr(project, "probe", lambda command: known.get(command[0]))
    called = []
    monkeypatch.setattr(project.subprocess, "call", lambda command: called.append(command) or 5)
    assert project.main(["test", "-q"]) == 5
    assert called == [["/somewhere/python3.13", str(Path(project.ROOT, "tools", "project.py")), "test", "-q"]]
    assert "Python 3.14 cannot do this; using /somewhere/python3.13." in capsys.readouterr().out


def test_probe_of_real_and_missing_pythons(project):
    assert project.probe([sys.executable])[0] == sys.version_info[:2]
    assert project.probe(["no-such-python"]) is None


def test_no_venv_module(project, steps, monkeypatch, capsys):
    monkeypatch.setattr(project, "has_venv", lambda: False)
    monkeypatch.setattr(project, "probe", lambda command: None)
    line = stopped(project, capsys)
    assert "has no venv module" in line and "apt install python3." in line
    assert not steps.made


def test_too_little_disk(project, steps, monkeypatch, capsys):
    monkeypatch.setattr(project.shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    line = stopped(project, capsys)
    assert "too little disk" in line and f"{project.NEEDED_GB} GB" in line and "1.5 GB are free" in line
    assert not steps.made


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_folder(project, steps, monkeypatch, capsys, number):
    def refuse():
        raise OSError(number, os.strerror(number), project.LOCK)

    monkeypatch.setattr(project, "lock", refuse)
    line = stopped(project, capsys)
    assert "cannot be written" in line and "copy the repository" in line
    assert not steps.made


def test_disk_full_while_pip_works(project, steps, capsys):
    error = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    steps.fail[1] = (1, ["Collecting torch", error, ""])
    line = stopped(project, capsys)
    assert "a disk is full" in line and "TMPDIR" in line


def test_any_other_pip_failure(project, steps, capsys):
    steps.fail[2] = (1, ["Obtaining file", "ERROR: something new", "", "[notice] a new release of pip"])
    line = stopped(project, capsys)
    assert "ERROR: something new" in line and "setup.log" in line


def offline(**settings):
    """The environment without this machine's settings for pip, and with an index that nobody answers for."""
    env = {k: v for k, v in os.environ.items() if not k.upper().startswith("PIP_") and not k.lower().endswith("_proxy")}
    return {**env, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", **settings}


def test_no_package_index(tmp_path):
    """For real: a new environment, pip, and nobody at the index."""
    folder = small_repository(tmp_path / "repository")
    command = [getattr(sys, "_base_executable", sys.executable), folder / "tools" / "project.py", "test"]
    env = offline(PIP_INDEX_URL="http://127.0.0.1:9")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "there is no .venv yet" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "no network to the package index" in lines[0] and "six" in lines[0]
    assert os.name == "nt" or "Connection refused" in lines[0]
    assert "PIP_INDEX_URL" in lines[0] and "PIP_NO_INDEX" in lines[0] and "PIP_FIND_LINKS" in lines[0]
    assert not (folder / ".venv" / "complete.json").exists()
    assert (folder / ".venv" / "setup.log").exists()


def test_folder_of_wheels_without_the_package(project, steps, capsys, tmp_path):
    pip = [sys.executable, "-m", "pip", "download", "six==1.17.0"]
    env = offline(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    done = subprocess.run(pip, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    steps.fail[1] = (done.returncode, done.stdout.splitlines())
    line = stopped(project, capsys)
    assert "has no build for Python 3." in line and "six==1.17.0" in line and "no network" not in line


def test_makefile_offers_the_commands(project):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(r"^(setup .*):\n\t@\$\(PROJECT\) \$@ \$\(ARGS\)$", text, re.MULTILINE)
    assert set(rule[1].split()) == set(project.COMMANDS)
    assert set(re.findall(r"echo \"make ([a-z-]+) ", text)) == set(project.COMMANDS)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
