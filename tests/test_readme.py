"""The README and pages around it: what they show is recorded, what they name exists, versions and licences agree."""

import hashlib
import json
import os
import re
import subprocess

import pytest
import yaml
from conftest import NAMES, PATHS
from matplotlib.testing.compare import compare_images
from packaging.requirements import Requirement
from test_install import ADDRESS, PROJECT

from helpers.docstrings import Reply, grade
from tools import results
from tools.run import ROOT, check_parameters

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = json.loads(results.RUN_OF_ALL.read_text(encoding="utf-8"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").rglob("*.md"), *ROOT.glob(".github/*.md")]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
LICENCES = {  # the texts as their authors publish them
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "LICENSE-data": "a2010f343487d3f7618affe54f789f5487602331c0a8d03f49e9a7c547cf0499",
}


def code_in(text):
    """What stands in fences and between backticks."""
    return "\n".join(re.findall(r"^(?:```|~~~).*?^(?:```|~~~)|`[^`\n]+`", text, re.MULTILINE | re.DOTALL))


def anchors(text):
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---------------------------------------------------------------- what the README shows


def test_its_first_part_is_one_screen():
    assert len(README.partition("\n## ")[0].splitlines()) <= 66  # two docstrings before and after have 36


def test_every_notebook_has_its_line_with_its_minutes():
    rows = re.findall(r"^\| \[(\d) [^]]+\]\(notebooks/(\w+)\.ipynb\) \| .+ \| ([\d.]+) \|$", README, re.MULTILINE)
    assert [name for _, name, _ in rows] == NAMES, "one line for each notebook, in order"
    assert all(name.startswith(f"0{number}_") for number, name, _ in rows)
    recorded = RUN["minutes"]
    assert {name: float(minutes) for _, name, minutes in rows} == {
        name: round(seconds / 60, 1) for name, seconds in recorded["seconds"].items()
    }
    assert f"{recorded['hardware']}, no GPU, {recorded['date']}" in README


def test_the_docstrings_are_recorded_ones_and_graded():
    block = re.search(r"^```text\n(def .+?)\n```$", README, re.MULTILINE | re.DOTALL)[1]
    shown = re.split(r"\n+(?=def )", block)
    page = results.page().split("## Docstrings before and after LoRA")[1]
    assert len(shown) == 2 and all(f"\n{one}\n" in page for one in shown)
    six = {signature: replies for signature, *replies in RUN["docstrings"]["six"]}
    for signature in (one.splitlines()[0] for one in shown):
        before, after = (grade(signature, Reply(text, True), "google") for text in six[signature])
        assert not before["form"] and after["form"] and after["names"], signature


def test_the_picture_is_drawn_from_the_records(tmp_path):
    """A tolerance for other fonts and processors; one marker moved by a point is above it."""
    results.picture().savefig(tmp_path / "scoreboard.png", dpi=90)
    assert compare_images(str(results.PICTURE), str(tmp_path / "scoreboard.png"), tol=0.5) is None, "run `make results`"


def test_counts_of_faults_are_those_of_their_page():
    files, faults = re.findall(
        r"^Tried: (\d+)", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert f"[{faults} faults and {files} files tried](docs/faults.md)" in README


# ---------------------------------------------------------------- what the pages name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.skipif(os.name == "nt", reason="Windows has no make")
def test_commands_exist_and_fit_their_notebooks():
    text = "\n".join(code_in(page.read_text(encoding="utf-8")) for page in PAGES)
    named = {*re.findall(r"\bmake ([a-z][a-z-]*)", text)}
    assert {"run", "test", "lab", "notebook", "results"} <= named
    dry = subprocess.run(["make", "--dry-run", *sorted(named)], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    modules = {*re.findall(r"-m ((?:tools|pretraining|benchmarks)\.\w+)", text + dry.stdout)}
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules), modules
    runs = re.findall(r'make run ARGS="?((?:notebooks/\w+\.ipynb ?)+)([^"\n`]*)', text)
    assert len(runs) >= 4
    for notebooks, options in runs:
        for name in re.findall(r"(\w+)\.ipynb", notebooks):
            check_parameters(PATHS[name], dict(re.findall(r"-p (\S+) (\S+)", options)))


def test_folders_of_the_table_exist():
    folders = re.findall(r"`(\w+)/`", README.partition("## What is where")[2].partition("\n## ")[0])
    assert {"notebooks", "helpers", "data", "tools", "docs", "tests"} <= {*folders}
    assert [folder for folder in folders if not (ROOT / folder).is_dir() and folder != "results"] == []


def test_every_direct_dependency_has_its_reason():
    lists = [(ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "docs/requirements.txt")]
    direct = "\n".join([lists[0].partition("# Part 2:")[0], lists[1].partition("# What these need")[0]])
    names = [Requirement(line.partition("#")[0]).name for line in re.findall(r"^\w.*", direct, re.MULTILINE)]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (.+?) \| .+ \|$", page, re.MULTILINE)
    assert sorted(names) == sorted(name for line in told[2:] for name in line.split(", "))


# ---------------------------------------------------------------- versions, licences, forms


def test_version_address_and_licence_are_the_same_everywhere():
    assert CITATION["version"] == PROJECT["version"] and CITATION["repository-code"] == ADDRESS
    assert " AND ".join(CITATION["license"]) == PROJECT["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changes, re.MULTILINE)
    assert versions[:2] == ["Unreleased", PROJECT["version"]] and len({*versions}) == len(versions)
    assert {*re.findall(r"^### (\w+)$", changes, re.MULTILINE)} <= {"Added", "Changed", "Removed", "Fixed", "Security"}


def test_licences_are_the_official_texts():
    for name, digest in LICENCES.items():
        assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == digest, name
    assert "license: cc0-1.0\n" in (ROOT / "data" / "language_model" / "README.md").read_text(encoding="utf-8")


def test_forms_for_issues_are_valid():
    assert len(FORMS) == 4  # three forms and config.yml
    for path in FORMS:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "config.yml":
            assert set(form) <= {"blank_issues_enabled", "contact_links"}
            continue
        assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels"}, path.name
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
        assert len({field["id"] for field in fields}) == len(fields) > 1
        assert all(field["attributes"]["label"] for field in fields)
        assert all(field["attributes"].get("options") for field in fields if field["type"] == "dropdown")
        assert any(field.get("validations", {}).get("required") for field in fields)
