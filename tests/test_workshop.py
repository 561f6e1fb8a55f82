"""The kit for a workshop: what students and hosts get, and that a student is led and never blocked."""

import re
import symtable
import sys

import nbformat
import pytest
import tiny
from conftest import NAMES, OWN_CODE
from executed import repository

from helpers import check
from tools import run, workshop
from tools.run import ROOT

every_notebook = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return workshop.write_workshop(tmp_path_factory.mktemp("kit"), repository(tmp_path_factory.mktemp("repository")))


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def original(name):
    return read(ROOT / "notebooks" / f"{name}.ipynb")


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def solutions(notebook):
    return [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]


@every_notebook
def test_a_student_copy_is_a_clean_notebook_without_solutions(kit, name):
    path = kit / "student" / f"{name}.ipynb"
    student = read(path)
    nbformat.validate(student)
    assert student.metadata == original(name).metadata and student.nbformat_minor == 5
    for cell in student.cells:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cell.id) and len(cell.id) <= 24 and cell.source.strip()
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
    ids = [cell.id for cell in student.cells]
    assert len(set(ids)) == len(ids)
    # Not one line that stands in a solution only, in what a student sees.
    kept = {line.strip() for cell in student.cells for line in cell.source.splitlines()}
    all_of = original(name)
    lines = {line.strip() for cell in solutions(all_of) for line in cell.source.splitlines()}
    own = lines - {line.strip() for c in all_of.cells if c not in solutions(all_of) for line in c.source.splitlines()}
    assert own and not own & kept and not solutions(student)


@every_notebook
def test_each_section_has_one_thing_to_fill_in_and_no_text_is_lost(kit, name):
    student, found, heading = read(kit / "student" / f"{name}.ipynb"), {}, None
    for cell in student.cells:
        titles = re.findall(r"^#+ .*", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        assert len(titles) <= 1
        heading = (titles or [heading])[0]
        to_fill = cell.id.startswith(("turn-", "fill-")) or (cell.id.startswith("exercise-") and "..." in cell.source)
        found[heading] = found.get(heading, 0) + to_fill
    taught = {heading for heading in found if re.match(r"##+ (\d+ |Exercise|Which|From this)", heading)}
    assert {heading for heading, count in found.items() if count} == taught
    assert all(found[heading] == 1 for heading in taught) and len(taught) >= 6
    words = [" ".join(c.source.split()) for c in student.cells if c.cell_type == "markdown" and "turn-" not in c.id]
    assert " ".join(words) == " ".join(
        " ".join(c.source.split()) for c in original(name).cells if "mark" in c.cell_type
    )


@every_notebook
def test_with_the_solutions_put_back_a_student_copy_is_the_notebook(kit, name):
    """Cell by cell, so its execution to the end is that of the notebook, which other tests look at."""
    student, whole = read(kit / "student" / f"{name}.ipynb"), original(name)
    cells = [cell for cell in student.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cell for cell in whole.cells if cell.cell_type == "code"):
        if cell in solutions(whole):
            cells.insert(number, cell)
    assert [(cell.id, cell.source, cell.metadata) for cell in cells] == [
        (cell.id, cell.source, cell.metadata) for cell in whole.cells if cell.cell_type == "code"
    ]


@every_notebook
def test_nobody_is_blocked_by_what_is_left_open(name):
    """No cell reads a name that only a solution, or an answer instead of three dots, would have set."""
    cells = [cell for cell in original(name).cells if cell.cell_type == "code"]

    def names(table, wanted):
        """What a cell assigns, or reads in functions too, of the notebook's names."""
        own = {s.get_name() for s in table.get_symbols() if getattr(s, wanted)()}
        if table.get_type() != "module":
            own = {name for name in own if table.lookup(name).is_global()}
        return own.union(*(names(child, wanted) for child in table.get_children() if wanted == "is_referenced"))

    waiting = set()
    for cell in cells:
        source = re.sub(r"^\s*%.*$", "", cell.source, flags=re.MULTILINE)
        table = symtable.symtable(source, cell.id, "exec")
        if "solution" in cell.metadata.get("tags", []):
            waiting |= names(table, "is_assigned")
            continue
        assert not waiting & names(table, "is_referenced") - names(table, "is_assigned"), cell.id
        waiting -= names(table, "is_assigned")
        waiting |= set(re.findall(r"^(\w+) = \.\.\.", source, re.MULTILINE))
    assert waiting  # something was looked at


def rows_of(page, heading):
    """The rows of the first table below a heading, without its head."""
    table = page.split(f"## {heading}")[1].partition("\n| ")[2].partition("\n\n")[0]
    return [[field.strip() for field in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


@every_notebook
def test_an_instructor_copy_has_results_solutions_and_minutes(kit, name):
    instructor = read(kit / "instructor" / f"{name}.ipynb")
    nbformat.validate(instructor)
    assert code_of(instructor) == code_of(original(name))
    assert all(cell.outputs for cell in instructor.cells if cell.cell_type == "code")
    asked = [cell.source for cell in read(kit / "student" / f"{name}.ipynb").cells if cell.id.startswith("turn-")]
    assert asked == [cell.source for cell in instructor.cells if cell.id.startswith("turn-")]
    sections = workshop.sections_of(kit / "instructor" / f"{name}.ipynb", {})
    for section in sections:
        cells = sum(cell.cell_type == "code" for cell in section.cells)
        minutes, computing = re.match(
            r"\n\n\*(\d+) minutes, ([\d.]+) of", section.cells[0].source[len(section.heading) :]
        ).groups()
        assert abs(float(computing) - cells / 60) < 0.051 and int(minutes) >= float(computing), section.heading


def test_the_plans_add_up_and_their_minutes_are_those_of_the_run(kit, tmp_path):
    root = repository(tmp_path)
    path = root / "results" / "executed" / f"{NAMES[0]}.ipynb"
    slow = read(path)
    next(cell for cell in slow.cells if cell.id == "adapt").metadata.papermill.duration = 1201.0
    nbformat.write(slow, path)
    before, after = (
        (one / "plan.md").read_text("utf-8") for one in (kit, workshop.write_workshop(tmp_path / "kit", root))
    )
    assert rows_of(before, "Half a day") == rows_of(after, "Half a day"), "`adapt` stands in the second half"
    total = {}
    for page, day, hours in ((before, "Half a day", (3, 4)), (before, "A day", (6, 8)), (after, "A day", (6, 9))):
        rows, clock = rows_of(page, day), 9 * 60
        for at, minutes, *_ in rows:
            assert at == f"{clock // 60}:{clock % 60:02}"
            clock += int(minutes)
        assert hours[0] * 60 <= clock - 9 * 60 <= hours[1] * 60, (day, clock)
        assert f"The end: {clock // 60}:{clock % 60:02}." in page
        total[day, page] = clock
    assert total["A day", after] == total["A day", before] + 20
    title = re.search("Notebook 1: .*", before)[0]
    changed = [pair for pair in zip(rows_of(before, title), rows_of(after, title)) if pair[0] != pair[1]]
    assert len(changed) == 1 and changed[0][1][4] == "`adapt` 1201"
    assert [float(new) - float(old) for old, new in zip(changed[0][0][1:3], changed[0][1][1:3])] == [20, 20]


def no_execution(root):
    (root / "results" / "executed" / f"{NAMES[2]}.ipynb").unlink()


def other_code(root):
    path = root / "notebooks" / f"{NAMES[1]}.ipynb"
    path.write_text(path.read_text("utf-8").replace("rank = 16", "rank = 8"), "utf-8")


def questions(old, new):
    """Another text in the questions."""

    def change(root):
        path = root / "tools" / "workshop.toml"
        path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")

    return change


FIRST = "[01_feature_extraction]\n"
REFUSED = {
    "not executed": (no_execution, NAMES[2], "make run"),
    "executed with other code": (other_code, NAMES[1], "make run"),
    "a section that is not there": (questions(FIRST, f'{FIRST}"7 New" = "What?"\n'), NAMES[0], "7 New"),
    "two in one section": (questions(FIRST, f'{FIRST}"3 Which layer?" = "What?"\n'), NAMES[0], "3 Which layer?"),
    "none in a section": (questions('"6 Read the mistakes" =', "# "), NAMES[0], "6 Read the mistakes"),
    "one around the lesson": (questions(FIRST, f'{FIRST}"Set-up" = "What?"\n'), NAMES[0], "Set-up"),
    "an unknown notebook": (questions(FIRST, f"[05_ia3]\n{FIRST}"), "workshop.toml", "05_ia3"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_a_kit_is_refused_in_one_line(tmp_path, fault):
    change, *words = REFUSED[fault]
    change(repository(tmp_path))
    with pytest.raises(run.NotebookError) as refusal:
        workshop.write_workshop(tmp_path / "kit", tmp_path)
    said = str(refusal.value)
    assert all(word in said for word in words) and "\n" not in said


@pytest.fixture(scope="module")
def walked(kit, tmp_path_factory):
    """All student copies in one kernel up to their first open line of code, that line filled in, and one cell more."""
    folder = tmp_path_factory.mktemp("walked")
    tried = OWN_CODE | {"results_dir": str(folder), "encoder": str(tiny.made("roberta", folder / "encoder"))}
    tried["language_model"] = str(tiny.made("gpt2", folder / "writer"))
    cells = []
    for name in NAMES:
        student = [cell for cell in read(kit / "student" / f"{name}.ipynb").cells if cell.cell_type == "code"]
        first = next(number for number, cell in enumerate(student) if cell.id.startswith("fill-"))
        some = [*student[: first + 1], solutions(original(name))[0], student[first + 1]]
        for cell in some:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "".join(
                    f"\n{key} = {value!r}" for key, value in tried.items() if f"\n{key} =" in cell.source
                )
            cell.id = f"{name}-{cell.id}"[:64]
        cells += [*some, nbformat.v4.new_code_cell("%reset -f")]
    path, done = folder / "student.ipynb", folder / "done.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=original(NAMES[0]).metadata), path)
    job = {"input_path": str(path), "output_path": str(done), "cwd": str(ROOT), "progress_bar": False}
    error = run.execute(job, 300, sys.executable, {"OMP_NUM_THREADS": "1"})
    run.check_cells(path, done, error)
    return {cell.id: cell for cell in read(done).cells}


@pytest.mark.slow
@every_notebook
def test_a_student_is_invited_at_the_first_open_line_and_goes_on_when_it_is_filled_in(walked, name, capsys):
    check(..., 1, "hint")
    invitation = capsys.readouterr().out
    check(1, 1, "hint")
    accepted = capsys.readouterr().out
    open_one = next(cell for cell in original(name).cells if cell.id.startswith("fill-"))
    said = [
        "".join(o.text for o in walked[f"{name}-{i}"].outputs) for i in (open_one.id, f"solution-{open_one.id[5:]}")
    ]
    assert said[0] == invitation and said[1].startswith(accepted)
