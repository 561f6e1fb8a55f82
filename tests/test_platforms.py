"""Opened on Colab, on Kaggle, in a folder of its own, without a network: what the first cell does and says.

`make test ARGS="tests/test_platforms.py -s"` prints what a reader would see in each place.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from test_setup import small_repository

import start_notebook
from helpers.hub import find_model, source_of
from tools import links, offline_kit, platforms

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY, TAG = links.address()
FIXED = {name: os.environ.get(name, "") for name in ("PATH", "HOME", "SYSTEMROOT")} | {"PYTHONDONTWRITEBYTECODE": "1"}
COLAB = {"COLAB_RELEASE_TAG": "release-colab"}
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}
CLOSED = "http://127.0.0.1:9"  # nobody answers there: the network is away


def first_cell(notebook=NOTEBOOKS[0]):
    cells = nbformat.read(notebook, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


def commit_all(folder):
    """Make a folder a git repository with one commit of all that is in it."""
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "release"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    """GitHub, played by a bare repository that holds the working tree as the release."""
    folder = tmp_path_factory.mktemp("github")
    copy = folder / "copy"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "results", "__pycache__", "offline-kit", "*.egg-info")
    )
    commit_all(copy)
    with platforms.published(folder / "served", root=copy) as served:
        yield served


class Seen:
    """What a reader sees after the first cell, and where the cell left things."""

    def __init__(self, folder, shown, values):
        self.folder, self.shown = folder, shown
        self.root = Path(values["root"]) if values else None
        self.helpers, self.cards = values.get("helpers"), values.get("cards")


@pytest.fixture
def open_alone(tmp_path, github, request):
    """Run the first cell in a folder where only the notebook is, on the platform that the variables pretend."""

    def run(environment, *, raw=github[0], git=github[1], attached=None, before="", tag=TAG, folder="content"):
        folder = tmp_path / folder
        if not folder.exists():
            platforms.open_alone(NOTEBOOKS[0], folder)
        place = repr(str(attached or tmp_path / "nothing attached"))
        cell = first_cell().replace(platforms.RAW, raw).replace(f'"{TAG}"', f'"{tag}"')
        cell = cell.replace('"/kaggle/input"', place).replace(
            "import start_notebook\n", f"import start_notebook\nstart_notebook.ATTACHED = Path({place})\n"
        )
        program = f"{before}\n{cell}\nimport helpers, json, os\n" + (
            "print(json.dumps({'root': str(root), 'helpers': helpers.__file__, "
            "'cards': os.environ.get('CUDA_VISIBLE_DEVICES')}))"
        )
        command = [*read_only(attached), sys.executable, "-c", program]
        environment = {**FIXED, **git, **environment}
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        *shown, last = (ran.stdout if ran.returncode == 0 else ran.stderr).strip().splitlines()
        values = json.loads(last) if ran.returncode == 0 else {}
        seen = Seen(folder, "\n".join(shown) if values else last, values)
        print(f"\n[{request.node.name.removeprefix('test_')}]\n{seen.shown}")
        return seen

    return run


def read_only(folder):
    """The beginning of a command that sees this folder as Kaggle shows its inputs, where this machine can do that."""
    if folder is None or not sys.platform.startswith("linux") or os.geteuid() != 0:
        return []
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, str(folder)]
    works = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


@pytest.fixture
def attached(tmp_path):
    """The repository as a dataset attached on Kaggle, unpacked from its ZIP."""
    folder = tmp_path / "input"
    place = folder / "datasets" / "somebody" / "fine-tuning" / "fine-tuning-techniques-main"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "results", "__pycache__", "offline-kit"))
    return folder


# ---------------------------------------------------------------- the places


def test_inside_the_repository_it_is_used_as_it_is(tmp_path):
    program = first_cell() + "\nprint(root)"
    for folder in (ROOT, ROOT / "notebooks"):
        run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
        line, root = run.stdout.splitlines()
        assert root == str(ROOT)
        assert re.fullmatch(r".+: Python 3\.\d+\.\d+, torch .+, transformers .+, peft .+ \| .+ \| models: .+", line)


def test_colab_clones_the_release_and_again_uses_the_clone(open_alone):
    seen = open_alone(COLAB)
    assert seen.shown.startswith("Colab: Python ") and seen.shown.count("\n") == 0
    assert seen.root == seen.folder / f"fine-tuning-techniques-{TAG}" and (seen.root / "data" / "helpdesk").is_dir()
    assert Path(seen.helpers).is_relative_to(seen.root), "helpers of another copy were imported"
    assert {path.name for path in seen.folder.iterdir()} == {NOTEBOOKS[0].name, "start_notebook.py", seen.root.name}
    again = open_alone(COLAB, raw=CLOSED, git={})
    assert again.root == seen.root


def test_kaggle_with_a_network_clones(open_alone):
    seen = open_alone(KAGGLE)
    assert seen.shown.startswith("Kaggle: ") and Path(seen.helpers).is_relative_to(seen.root)


def test_kaggle_without_a_network_uses_the_attached_repository(open_alone, attached):
    seen = open_alone(KAGGLE, raw=CLOSED, git={}, attached=attached)
    assert seen.shown.startswith("Kaggle: ")
    assert seen.root.is_relative_to(seen.folder), "results cannot be written among the inputs"
    assert Path(seen.helpers).is_relative_to(seen.root)
    (seen.root / "results").mkdir()
    again = open_alone(KAGGLE, raw=CLOSED, git={}, attached=attached)
    assert again.root == seen.root and (again.root / "results").is_dir()


# ---------------------------------------------------------------- each failure, by its own message


def test_no_network_and_nothing_attached(open_alone):
    said = open_alone(KAGGLE, raw=CLOSED).shown
    assert "turn on Internet" in said and "Add Input" in said and "offline kit" in said


def test_no_such_release(open_alone):
    assert "404" in (said := open_alone(COLAB, tag="v99").shown)
    assert "There is no such repository or release." in said


def test_no_such_release_when_the_small_file_is_there(open_alone):
    open_alone(COLAB)
    assert re.search(r"has no tag 'v99'\. Set TAG", open_alone(COLAB, tag="v99").shown)


def test_the_network_breaks_off_between_file_and_clone(open_alone, tmp_path):
    nowhere = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{CLOSED}/.insteadOf"}
    nowhere["GIT_CONFIG_VALUE_0"] = "https://github.com/"
    seen = open_alone(KAGGLE, git=nowhere)
    assert "could not be cloned" in seen.shown and "turn on Internet" in seen.shown
    assert {path.name for path in seen.folder.iterdir()} == {NOTEBOOKS[0].name, "start_notebook.py"}, "a broken clone"
    assert "offline kit" in open_alone({}, git=nowhere).shown


def test_an_attached_copy_without_its_data(open_alone, attached):
    shutil.rmtree(next(attached.rglob("helpdesk")))
    said = open_alone(KAGGLE, raw=CLOSED, attached=attached).shown
    assert "is not the whole repository: data/helpdesk/train.jsonl not there" in said


def test_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="git is not installed"):
        start_notebook._clone("https://github.com/somebody/something", "v1", tmp_path / "clone")


@pytest.mark.parametrize(
    ("environment", "remedy"),
    [
        (COLAB, "Do not upgrade these here"),
        (KAGGLE, "Do not upgrade these here"),
        ({}, "make setup"),
    ],
)
def test_missing_and_old_packages_are_named_and_nothing_is_installed(monkeypatch, environment, remedy):
    for name in (*COLAB, *KAGGLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        start_notebook, "OLDEST", {"transformers": "99.0", "no-such-package": "1", "torch": "2.10", "Python": "3.99"}
    )
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("something was started"))
    with pytest.raises(RuntimeError, match=remedy) as caught:
        start_notebook._check_packages(ROOT)
    assert re.search(
        r"transformers 5\.\S+ \(needed: 99\.0 or newer\); no-such-package \(missing\); Python 3\.\d+", str(caught.value)
    )
    assert "torch" not in str(caught.value).replace("PyTorch", "")


def test_versions_compare_as_numbers():
    assert start_notebook._numbers("2.10.0+cu128") >= start_notebook._numbers("2.10")
    assert start_notebook._numbers("5.0.0rc1") >= start_notebook._numbers("5.0")
    assert start_notebook._numbers("2.9.1") < start_notebook._numbers("2.10")


# ---------------------------------------------------------------- cards


def with_cards(folder, *rows):
    """A driver that reports these cards, and a PyTorch built for Volta and newer, as Colab's and Kaggle's."""
    driver = folder / "driver" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n")
    driver.chmod(0o755)
    built = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    before = f"import torch\ntorch.cuda.get_arch_list = lambda: {built}"
    return {"PATH": f"{driver.parent}{os.pathsep}{FIXED['PATH']}"}, before


@pytest.mark.skipif(os.name == "nt", reason="the driver is played by a shell script")
@pytest.mark.parametrize(
    ("rows", "chosen", "said"),
    [
        (["0, Tesla T4, 7.5", "1, Tesla T4, 7.5"], "0", "one of 2 cards used"),
        (["0, Tesla P100-PCIE-16GB, 6.0"], "", "P100-PCIE-16GB (sm_60) not used: this PyTorch has no kernels for it"),
        (["0, Tesla P100-PCIE-16GB, 6.0", "1, Tesla T4, 7.5"], "1", "one of 2 cards used"),
        (["0, NVIDIA A100, 8.0"], "0", ""),
        (["NVIDIA-SMI has failed because it could not communicate with the driver"], None, ""),
    ],
    ids=["two T4", "P100", "P100 and T4", "A100", "no driver"],
)
def test_one_card_at_most(open_alone, tmp_path, rows, chosen, said):
    environment, before = with_cards(tmp_path, *rows)
    seen = open_alone({**KAGGLE, **environment}, before=before)
    assert seen.cards == chosen and said in seen.shown
    assert ("card" in seen.shown.replace("No CUDA card", "")) == ("cards" in said)


@pytest.mark.skipif(os.name == "nt", reason="the driver is played by a shell script")
def test_too_late_to_hide_a_card_is_said(open_alone, tmp_path):
    environment, before = with_cards(tmp_path, "0, Tesla T4, 7.5", "1, Tesla T4, 7.5")
    before += "\ntorch.cuda.is_initialized = lambda: True"
    seen = open_alone({**KAGGLE, **environment}, before=before)
    assert "2 cards in sight" in seen.shown and "restart the session" in seen.shown and seen.cards is None


@pytest.mark.skipif(os.name == "nt", reason="the driver is played by a shell script")
def test_a_choice_made_by_the_reader_stays(open_alone, tmp_path):
    environment, before = with_cards(tmp_path, "0, Tesla T4, 7.5", "1, Tesla T4, 7.5")
    assert open_alone({**environment, "CUDA_VISIBLE_DEVICES": "1"}, before=before).cards == "1"


# ---------------------------------------------------------------- what is installed, and models


@pytest.fixture
def lacks_bitsandbytes(monkeypatch):
    monkeypatch.setattr(start_notebook, "find_spec", lambda name: None)
    for name in (*COLAB, *KAGGLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pip(monkeypatch):
    """pip, which writes down what it was asked and answers with `pip.answer`."""
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, *run.answer)

    run.answer, run.asked = (0, "", ""), asked
    monkeypatch.setattr("subprocess.run", run)
    return run


def test_only_what_is_missing_is_installed_alone_and_pinned(monkeypatch, lacks_bitsandbytes, pip, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    start_notebook.install("bitsandbytes")
    assert pip.asked[0][1:4] == ["-m", "pip", "install"] and "--no-deps" in pip.asked[0]
    assert pip.asked[0][-1] == platforms.pin("bitsandbytes")
    wheel = tmp_path / "wheels" / "bitsandbytes-0.50.2-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    monkeypatch.setattr(start_notebook, "ATTACHED", tmp_path)
    start_notebook.install("bitsandbytes")
    assert "--no-deps" in pip.asked[1] and pip.asked[1][-1] == str(wheel)
    pip.answer = (1, "", "WARNING: a\nERROR: No matching distribution found for bitsandbytes")
    with pytest.raises(RuntimeError, match=r"No matching distribution.*Add Input.*Notebooks 1, 2 and 4 do without"):
        start_notebook.install("bitsandbytes")
    monkeypatch.setattr(start_notebook, "find_spec", lambda name: object())
    start_notebook.install("bitsandbytes")
    assert len(pip.asked) == 3, "what is there must not be installed again"


def test_on_a_laptop_nothing_is_installed(lacks_bitsandbytes, pip):
    with pytest.raises(RuntimeError, match="make setup"):
        start_notebook.install("bitsandbytes")
    assert not pip.asked


def test_only_notebook_3_asks_for_bitsandbytes():
    for path in NOTEBOOKS:
        sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        names = {
            alias.name
            for source in sources
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        asks = any('start_notebook.install("bitsandbytes")' in source for source in sources)
        assert asks == ("bitsandbytes" in names) == path.name.startswith("03"), path.name


def test_model_attached_on_kaggle(tmp_path, monkeypatch):
    name = "sentence-transformers/all-MiniLM-L6-v2"
    folder, _ = find_model(name)
    monkeypatch.setattr("helpers.hub._packaged", lambda package: None)
    monkeypatch.setattr("helpers.hub.ATTACHED", tmp_path)
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert re.search("none yet.*turn on Internet.*Add Input.*all-MiniLM-L6-v2", source_of(name))
    place = tmp_path / "models" / "all_minilm_l6_v2" / "pytorch" / "1"
    place.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy(file, place)
    assert source_of(name) == f"the attached folder {place}"
    assert find_model(name) == (place, f"the attached folder {place}")


# ---------------------------------------------------------------- links, versions, tables


def test_address_stands_in_one_place_and_links_match_their_files(tmp_path):
    assert not links.outdated(), "run `make links`"
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        found = re.findall(r"\]\((https://[^)]+)\)", notebook.cells[0].source.split("\n\n")[1])
        place = f"{REPOSITORY}/blob/{TAG}/{path.relative_to(ROOT).as_posix()}"
        colab, kaggle, binder = (link for link in found if not link.endswith(".svg"))
        assert colab == f"https://colab.research.google.com/github/{place}"
        assert (
            kaggle == f"https://kaggle.com/notebooks/welcome?src=https://github.com/{place}&accelerator=nvidiaTeslaT4"
        )
        assert binder == f"https://mybinder.org/v2/gh/{REPOSITORY}/{TAG}?labpath=notebooks/{path.name}"
        assert all(link in (ROOT / "README.md").read_text(encoding="utf-8") for link in (colab, kaggle, binder))
    # Changed in the one place, it changes everywhere.
    for name in ("pyproject.toml", "README.md", "notebooks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    changed = project.replace(REPOSITORY, "somebody/else").replace(f'"{TAG[1:]}"', '"7.8.9"')
    (tmp_path / "pyproject.toml").write_text(changed, encoding="utf-8")
    texts = links.outdated(tmp_path)
    assert {path.name for path in texts} == {"README.md", *(path.name for path in NOTEBOOKS)}
    for text in texts.values():
        assert REPOSITORY not in text and f"{TAG}" not in text and "somebody/else/blob/v7.8.9/notebooks" in text


def test_first_cells_are_equal_and_short():
    cells = {first_cell(path) for path in NOTEBOOKS}
    assert len(cells) == 1
    assert len([line for line in cells.pop().splitlines() if line.strip()]) <= 20


def test_start_notebook_needs_only_python():
    tree = ast.parse((ROOT / "start_notebook.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_oldest_versions_are_those_of_the_platforms():
    packages = dict(start_notebook.OLDEST)
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert supported.startswith(f">={packages.pop('Python')},")
    for name, oldest in packages.items():
        listed = [
            line.split("==")[1]
            for platform in platforms.platforms().values()
            for line in platform.requirements
            if line.startswith(f"{name}==") and platform.name != "newest"
        ]
        least = min(map(start_notebook._numbers, listed))
        assert start_notebook._numbers(oldest) == least[:2], f"{name}: {listed}"


def test_every_platform_lists_what_the_notebooks_import():
    for platform in platforms.platforms().values():
        names = {re.split("[=<>]", line)[0] for line in platform.requirements}
        assert names >= {*platforms.RUNTIME, "torch"}, platform.name
        assert platform.name == "newest" or "bitsandbytes" not in names, "the notebook is to install it"


def test_readme_shows_the_results_of_the_last_run():
    rows = json.loads(platforms.RESULTS.read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert platforms.in_readme(text, rows) == text
    assert {(row["platform"], row["notebook"]) for row in rows} == {
        (platform, notebook.stem) for platform in platforms.platforms() for notebook in NOTEBOOKS
    }
    # The same lesson everywhere: another version may round differently, and must not learn something else.
    for notebook in NOTEBOOKS:
        learned = [row["accuracy"] for row in rows if row["notebook"] == notebook.stem and "accuracy" in row]
        assert max(learned) - min(learned) < 0.04, (notebook.stem, learned)


def test_table_shows_what_failed_and_what_was_not_run():
    installed = dict.fromkeys(platforms.SHOWN, "1.0+cpu") | {"python": "3.12.1"}
    about = {"platform": "a", "versions": installed, "date": "2026-01-02", "hardware": "a machine"}
    rows = [
        {**about, "notebook": "01_x", "seconds": 61, "accuracy": 0.5},
        {**about, "notebook": "02_y", "failed": "broken"},
        {**about, "platform": "b", "notebook": "01_x", "seconds": 5, "accuracy": 0.25},
    ]
    lines = platforms.table(rows).splitlines()
    assert lines[2] == f"| a, Python 3.12.1 | {' | '.join(['1.0'] * len(platforms.SHOWN))} | 61 s, 50.0 | failed |"
    assert lines[3].endswith("| 5 s, 25.0 | not run |") and "2026-01-02 on a machine" in lines[-1]


def test_a_python_that_is_not_here_is_replaced_by_the_running_one():
    assert platforms.find_python("3.99") == sys.executable


# ---------------------------------------------------------------- the offline kit


@pytest.mark.skipif(os.name == "nt", reason="starts the kit's shell script")
def test_offline_kit_installs_and_runs_without_a_network(tmp_path):
    """The real kit with a small list of packages: all packages take minutes (`make offline-kit ARGS=--check`)."""
    packages = (platforms.pin("setuptools"), platforms.pin("six"))
    root = small_repository(tmp_path / "repository", requirement="\n".join(packages))
    (root / "tools" / "run_notebooks.py").write_text("import six, sys\nprint('ran', sys.argv[1:])\n")
    commit_all(root)
    kit = offline_kit.write_kit(tmp_path / "kits to carry", root)
    assert kit.name == f"fine-tuning-techniques-{TAG}-{offline_kit.machine()}"
    assert {path.name.split("-")[0] for path in (kit / "wheels").iterdir()} == {"setuptools", "six"}
    command = [*offline_kit.no_network(), "sh", str(kit / "start.sh"), "run", "a b"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and "ran ['a b']" in run.stdout, run.stdout + run.stderr
    for wheel in (kit / "wheels").glob("six*"):
        wheel.unlink()
    shutil.rmtree(kit / "repository" / ".venv")
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1 and "Stopped:" in run.stderr, "a missing wheel must not be fetched"


def test_offline_kit_names_the_python_it_needs(tmp_path):
    script = tmp_path / "start.sh"
    (tmp_path / "repository").mkdir()
    (tmp_path / "wheels").mkdir()
    script.write_text(offline_kit.START_SH.format(name="start.sh", python="3.99"))
    run = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert run.returncode == 1 and "needs Python 3.99" in run.stderr
