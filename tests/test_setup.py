"""The set-up: one place for versions, a short Makefile, hooks that keep outputs and secrets out of commits."""

import ast
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IN_VENV = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
SKIPPED = {".git", "offline-kit", "results", "build", "__pycache__", ".ipynb_checkpoints"}  # and .venv*
CUDA = re.compile(r"(nvidia|cuda|triton)\b")  # come with PyTorch's CUDA build
PACKAGE_OF = {"sklearn": "scikit-learn", "yaml": "pyyaml", "IPython": "ipykernel"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]


def files(*suffixes):
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.endswith((".egg-info", "_cache"))]
        folders[:] = [name for name in folders if not name.startswith(".venv")]
        yield from (Path(folder, name) for name in names if not suffixes or name.endswith(suffixes))


def requirements(part=None):
    """The requirements of requirements.txt: of both parts, of part 1 (direct) or of part 2."""
    first, second = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("# Part 2:")
    lines = {None: f"{first}\n#{second}", 1: first, 2: f"#{second}"}[part].splitlines()
    return [Requirement(line) for line in (re.sub(r"\s*#.*", "", line).strip() for line in lines) if line]


# ---------------------------------------------------------------- versions in one place


def test_every_requirement_is_pinned_once():
    for requirement in requirements():
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(requirement.specifier)), f"not pinned: {requirement}"
        assert requirement.name == canonicalize_name(requirement.name) and not requirement.extras
        assert not CUDA.match(requirement.name), f"{requirement.name}: PyTorch's CUDA build brings its own"
    names = [requirement.name for requirement in requirements()]
    assert len(names) == len(set(names)), f"twice: {sorted({name for name in names if names.count(name) > 1})}"


@pytest.mark.skipif(not IN_VENV, reason="only in the .venv of this repository")
def test_part_2_has_all_that_part_1_needs_and_nothing_else():
    pinned = {one.name: one for one in requirements() if one.marker is None or one.marker.evaluate()}
    for name, requirement in pinned.items():
        assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True), name
    needed, queue, seen = set(), [Requirement(one.name) for one in requirements(1)], set()
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or CUDA.match(name):
            continue
        seen.add((name, extras))
        needed.add(name)
        children = map(Requirement, importlib.metadata.requires(name) or [])
        queue += [c for c in children if not c.marker or any(c.marker.evaluate({"extra": e}) for e in {*extras, ""})]
    assert needed == set(pinned), f"missing: {sorted(needed - set(pinned))}; not needed: {sorted(set(pinned) - needed)}"


def test_what_is_imported_is_a_direct_dependency():
    direct, unlisted = {requirement.name for requirement in requirements(1)}, set()
    own = {"benchmarks", "helpers", "pretraining", "tests", "tools", *(path.stem for path in files(".py"))}
    for folder in ("benchmarks", "docs"):  # in an environment of their own, and for the site and the browser
        others = (ROOT / folder / "requirements.txt").read_text(encoding="utf-8").partition("in turn")[0]
        direct |= set(re.findall(r"^([a-z][\w-]+)", others, re.MULTILINE))
    for path in files(".py", ".ipynb"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            text = "\n".join("".join(cell["source"]) for cell in cells)
            text = re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(text, str(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - own:
                if PACKAGE_OF.get(module, canonicalize_name(module)) not in direct:
                    unlisted.add((module, path.name))
    assert not unlisted, f"imported, but not in part 1 of requirements.txt: {unlisted}"


def test_every_place_names_the_same_pythons_and_no_versions_of_its_own():
    supported = set(SpecifierSet(PROJECT["requires-python"]).filter(f"3.{minor}" for minor in range(30)))
    assert supported == {"3.11", "3.12", "3.13"} and not {"dependencies", "optional-dependencies"} & set(PROJECT)
    python, *others = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert python.removeprefix("python=") in supported and others == ["pip", {"pip": ["-r requirements.txt", "-e ."]}]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "(3, 11) <= sys.version_info < (3, 14)" in makefile and "3.11, 3.12 or 3.13 is needed" in makefile
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            matrix = job["strategy"]["matrix"]
            pythons = {*matrix["python"], *(extra["python"] for extra in matrix.get("include", []))}
            assert pythons and pythons <= supported, f"{path.name}: {pythons}"
            assert any(re.search("make (test|site)", step.get("run", "")) for step in job["steps"]), path.name


def test_no_index_host_in_any_file():
    """Each reader's pip knows its own index; a name written here would break machines that have another."""
    hosts = ["py" + "pi.org", "python" + "hosted.org", "download." + "pytorch.org", "ana" + "conda.org"]
    url = re.compile(r"index[-_]url\s*[= ]\s*[\"']?(https?|file)://", re.IGNORECASE)
    for path in files():
        if path.stat().st_size < 5_000_000:
            text = path.read_bytes().decode("utf-8", errors="replace")
            assert not [host for host in hosts if host in text] and not url.search(text), path


# ---------------------------------------------------------------- the Makefile


def test_makefile_offers_the_commands_on_one_page():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = {"setup", "run", "test", "lab", "lint", "measurements", "results", "test-platforms", "offline-kit"}
    commands |= {"bench", "notebook", "site", "workshop"}
    assert len(text.splitlines()) <= 72  # a page
    assert set(re.findall(r"^([a-z-]+): \.venv/\.done(?:-docs)? .*## ", text, re.MULTILINE)) == commands
    assert re.search(r"^export OMP_WAIT_POLICY = PASSIVE$", text, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for module in re.findall(r"-m (tools\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.skipif(os.name == "nt", reason="Windows has no make")
def test_makefile_sets_up_once_and_again_after_a_change(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, calls = tmp_path / "python", tmp_path / "calls"
    asked = '#!/bin/sh\necho "$*" >> calls\n'  # a Python that writes down what it is asked, and makes a .venv of itself
    python.write_text(asked + 'case "$2" in venv) mkdir -p .venv/bin; cp "$0" .venv/bin/python;; esac\n')
    python.chmod(0o755)

    def make():
        calls.write_text("")
        command = ["make", "run", f"PYTHON={python}", "ARGS=a b"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return run.stderr, [line for line in calls.read_text().splitlines() if not line.startswith("-c")]

    steps = ["-m venv .venv", "-m pip install -r requirements.txt -e .", "-m tools.run a b"]
    assert make()[1] == steps and make()[1] == steps[2:]
    os.utime(tmp_path / "requirements.txt", (2**32, 2**32))
    assert make()[1] == steps
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 10)\n$2"\n')
    said, done = make()
    assert "Stopped: Python 3.10 runs this, 3.11, 3.12 or 3.13 is needed. Name one" in said and not done


# ---------------------------------------------------------------- hooks


def test_secrets_hooks_find_what_nobody_should_commit(tmp_path):
    """In .venv; what the hook that strips notebooks must leave is held by test_notebook_structure.py."""
    assert [repo["repo"] for repo in HOOKS] == ["local"], "a hook from elsewhere would have a version of its own"
    entries = {hook["id"]: hook["entry"] for hook in HOOKS[0]["hooks"]}
    options = re.search(r'exec "\$p" (.*) "\$@"', shlex.split(entries["detect-secrets"])[2])[1]
    secrets = ["gh" + "p_" + "aB3d" * 9, "AKI" + "A" + "Q7Z2" * 4, "-----BEGIN " + "RSA PRIVATE KEY-----"]
    for number, text in enumerate([*secrets, "a hash: " + "0123456789abcdef" * 4]):
        path = tmp_path / f"{number}.md"
        path.write_text(text + "\n")
        found = subprocess.run([sys.executable, *shlex.split(options), str(path)], capture_output=True).returncode
        assert found == (text in secrets), text
    token = entries["hugging-face-token"]
    assert re.search(token, "hf_" + "aB3d" * 9) and not re.search(token, "hf_hub_download")
