"""Every notebook keeps the form that readers, GitHub, papermill and reviewers rely on."""

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from conftest import PATHS

from helpers.scoreboard import TECHNIQUES

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = {
    "task": "helpdesk",
    "text_column": "text",
    "label_column": "label",
    "encoder": "sentence-transformers/all-MiniLM-L6-v2",
    "seed": 0,
    "train_examples": 384,
    "results_dir": "results",
}
LONGEST_CELL, WIDEST_LINE = 30, 88
MOST_CELLS, MOST_LINES = 45, 420
MINUTES_OF_READING = 60
WORDS_A_MINUTE = 200


@pytest.fixture(params=PATHS.values(), ids=PATHS)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    """All Markdown without what stands in code fences."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_every_notebook_is_found_and_named_for_its_technique():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} | {"template"} == set(PATHS)
    assert {name[3:] for name in PATHS if name != "template"} <= set(TECHNIQUES)


def test_stripped_and_valid(notebook, path):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
        assert set(cell.metadata) <= {"tags"}, cell.id
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one) and len(one) <= 24 for one in ids), ids
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|work)/", text) and len(text) < 200_000


def test_parameters_are_literal_and_every_number_is_checked_before_anything_is_computed(notebook):
    """The board refuses what cannot work; 0 training examples are all of them."""
    (cell,) = (cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", []))
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert {name: values.get(name) for name in PARAMETERS} == PARAMETERS
    numbers = {name for name, value in values.items() if type(value) in (int, float)} - {"train_examples"}
    board = next(cell.source for cell in code_cells(notebook) if "helpers.Scoreboard(" in cell.source)
    assert {name for name in numbers if not re.search(rf'\b{name}"?(=|: ){name}\b', board)} == set()


def test_cells_are_short(notebook):
    cells = [[line for line in cell.source.splitlines() if line.strip()] for cell in code_cells(notebook)]
    lengths = sorted(map(len, cells))
    assert lengths[-1] <= LONGEST_CELL and all(cell.source.strip() for cell in notebook.cells)
    assert max(len(line) for cell in cells for line in cell) <= WIDEST_LINE
    assert len(lengths) <= MOST_CELLS and sum(lengths) <= MOST_LINES and lengths[len(lengths) // 2] <= 6


def test_code_is_never_hidden_or_handed_to_a_shell(notebook):
    """But for installing, at the beginning, what a notebook that was opened alone lacks."""
    for number, cell in enumerate(code_cells(notebook)):
        shell = re.findall(r"^\s*(?:!|%%|%\w+).*$", cell.source, flags=re.MULTILINE)
        installs = [line for line in shell if line.startswith("    %pip install --quiet --no-deps {")]
        assert not shell or (shell == installs and number < 2), cell.id
        assert not {"hide-input", "remove-input", "hide_input"} & set(cell.metadata.get("tags", [])), cell.id


def test_what_a_widget_calls_is_also_called_plainly(notebook):
    """For pages and platforms that show no widgets."""
    sources = [cell.source for cell in code_cells(notebook) if "%pip" not in cell.source]
    statements = [statement for source in sources for statement in ast.parse(source).body]
    by_widgets, plainly = set(), set()
    for statement in statements:
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        kinds = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
        if "observe" in kinds:
            by_widgets |= names - {"setattr"}
        elif "interactive" in kinds:
            by_widgets |= {statement.value.args[0].id}
        elif not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            plainly |= names
    assert by_widgets <= plainly and bool(by_widgets) == any("widgets." in source for source in sources)


def test_headings_beginning_and_end(notebook):
    text, first, last = prose(notebook), notebook.cells[0].source, code_cells(notebook)[-1].source
    levels = [len(mark) for mark in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(levels) <= 3
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(f"What you'll {promise}" in first for promise in ("do", "learn", "need"))
    for heading in ("Going further", "On your own data", "What you learned", "Further reading"):
        assert f"# {heading}" in text, heading
    assert "board.save()" in last and "headline" in last


def test_what_the_reader_fills_in_has_a_check_and_a_tagged_solution(notebook):
    ids = [cell.id for cell in notebook.cells]
    open_ones = [cell for cell in code_cells(notebook) if cell.id.startswith(("fill-", "exercise-"))]
    solutions = [cell.id for cell in code_cells(notebook) if "solution" in cell.metadata.get("tags", [])]
    assert 2 <= len(open_ones) == len(solutions)
    for cell in open_ones:
        assert "check" in cell.source, cell.id
        solution = f"solution-{cell.id.partition('-')[2]}"
        assert solution in solutions and ids.index(cell.id) < ids.index(solution), cell.id


def test_images_have_alt_text_and_links_lead_somewhere(notebook):
    text = prose(notebook)
    assert all(len(alt) > 20 for alt in re.findall(r"!\[([^\]]*)\]", text))
    assert "<img" not in text
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not re.match(r"https://", target):
            assert (ROOT / "notebooks" / target.split("#")[0]).exists(), target


def test_every_figure_is_followed_by_prose(notebook):
    cells = notebook.cells
    for cell, after in itertools.pairwise(cells):
        if cell.cell_type == "code" and "plt.show()" in cell.source and cell.id not in ("records", "scoreboard"):
            printed = "print(" in cell.source.split("plt.show()")[1] or cell.source.split("plt.show()")[1].strip()
            assert printed or after.cell_type == "markdown" or "print(" in after.source, cell.id


def test_prose_is_an_hour_of_reading_at_most_and_has_no_measured_number(notebook):
    """Results are computed, not typed: no percentages and no seconds in the text."""
    text = prose(notebook)
    assert re.findall(r"\d+(?:\.\d+)?\s?(?:%|percent|seconds|points)", text) == []
    assert len(text.split()) / WORDS_A_MINUTE <= MINUTES_OF_READING
