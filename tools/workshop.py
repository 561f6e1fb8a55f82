"""Writes what a host needs into results/workshop: student and instructor copies, plans and pages. `make workshop`.

Computing takes what it took in results/executed. What is asked in words stands in workshop.toml beside this file.
"""

import argparse
import math
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from tools.run import ROOT, NotebookError, notebooks_of, seconds_of

PAGES = ("workshop.md", "cheatsheet.md")  # written by hand, in docs/
WORDS, LINES, GUESS, CODE = 200, 15, 2, 4
RULE = f"""\
The minutes of a section are those that its cells took when `make run` executed them, and by rule: one for {WORDS}
words, one for {LINES} lines of code, {GUESS} for a guess (everybody writes, two or three are heard), {CODE} for code to
fill in. A block is rounded up to five minutes."""
# A number and a letter: that notebook up to "Going further" (a), or from there on (b). The rest: minutes, and what.
DAYS = {
    "Half a day": "10 Welcome, 1a, 2a, 15 Break, 3a, 10 Break, 4a, 10 Which technique when?",
    "A day": "15 Welcome, 1a, 1b, 15 Break, 2a, 2b, 60 Lunch, 3a, 10 Break, 3b, 10 Break, 4a, 4b, 15 Questions",
}
# Around the lesson: nothing is filled in there.
FRAME = (
    r"# .*|## (Set-up|Going further|On your own data.*|The scoreboard|What you learned|Further reading)|### In practice"
)
TURN = "> **Your turn.** Before you run it: {}\n>\n> *Double-click here and write.* My guess: ..."


class Section(NamedTuple):
    """A heading and the cells up to the next one; the first cell begins with it."""

    heading: str
    cells: list[NotebookNode]

    @property
    def title(self) -> str:
        return self.heading.lstrip("# ")

    @property
    def open_cells(self) -> list[NotebookNode]:
        """What is to be filled in: a guess in words, or code with its check."""
        kinds = {"markdown": "turn-", "code": ("fill-", "exercise-")}
        return [cell for cell in self.cells if cell.id.startswith(kinds[cell.cell_type])]

    @property
    def computing(self) -> float:
        return sum(map(seconds_of, self.cells)) / 60

    @property
    def minutes(self) -> float:
        words = sum(len(cell.source.split()) for cell in self.cells if cell.cell_type == "markdown")
        code = "\n".join(c.source for c in self.cells if c.cell_type == "code" and not is_solution(c))
        lines = sum(bool(line.strip()) for line in code.splitlines())
        doing = sum(CODE if cell.cell_type == "code" else GUESS for cell in self.open_cells)
        return self.computing + words / WORDS + lines / LINES + doing


def is_solution(cell: NotebookNode) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def sections_of(path: Path, questions: dict[str, str]) -> list[Section]:
    """The sections of a notebook, each with one thing to fill in: code of the notebook's own, or a question."""
    found, asked = [], dict(questions)
    for cell in nbformat.read(path, as_version=4).cells:
        if "injected-parameters" in cell.metadata.get("tags", []):  # by the run
            continue
        if cell.cell_type == "code":
            found[-1].cells.append(cell)
            continue
        for number, text in enumerate(re.split(r"\n+(?=##+ )", cell.source)):  # a heading begins a cell of its own
            if text.startswith("#"):
                found.append(Section(text.partition("\n")[0], []))
            found[-1].cells.append(nbformat.v4.new_markdown_cell(text, id=f"{cell.id}-{number}" if number else cell.id))
            if question := asked.pop(found[-1].title, ""):
                turn = nbformat.v4.new_markdown_cell(TURN.format(question), id=f"turn-{len(found)}")
                found[-1].cells.append(turn)
    for section in found:
        ids = [cell.id for cell in section.open_cells]
        if len(ids) != (not re.fullmatch(FRAME, section.heading)):
            wanted = "expected one: code with a check, or a question in tools/workshop.toml"
            raise NotebookError(path, f"{section.title!r} has {ids} to fill in, {wanted} (around the lesson none).")
    if asked:
        raise NotebookError(path, f"tools/workshop.toml has questions for sections that it lacks: {list(asked)}.")
    return found


def write_copy(path: Path, sections: list[Section], folder: Path, *, solved: bool) -> None:
    """Write a notebook made of sections: without solutions, or with them and the minutes of each section."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for section in sections for cell in section.cells if solved or not is_solution(cell)]
    for section in sections if solved else ():
        said = f"*{math.ceil(section.minutes)} minutes, {section.computing:.1f} of them computing.*"
        section.cells[0].source = section.cells[0].source.replace(section.heading, f"{section.heading}\n\n{said}", 1)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / path.name)


def plan(lessons: list[list[Section]]) -> str:
    """Both days, and the minutes of each section, as a page."""
    halves, tables = {}, []
    for number, sections in enumerate(lessons, 1):
        titles = [section.title for section in sections]
        middle = titles.index("Going further")
        halves |= {f"{number}a": sections[:middle], f"{number}b": sections[middle : titles.index("Further reading")]}
        tables += ["", f"## Notebook {number}: {titles[0]}", ""]
        tables += [
            "| section | minutes | computing | to fill in | over ten seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        for section in sections:
            waits = ", ".join(f"`{cell.id}` {seconds_of(cell):.0f}" for cell in section.cells if seconds_of(cell) >= 10)
            to_fill = ", ".join("a guess" if c.cell_type == "markdown" else f"`{c.id}`" for c in section.open_cells)
            if section.minutes >= 1 and section.heading.startswith("##"):
                row = (section.title, math.ceil(section.minutes), f"{section.computing:.1f}", to_fill, waits)
                tables += ["| {} | {} | {} | {} | {} |".format(*row)]
    page = ["# Plans for a workshop", "", f"Written by `make workshop`. {RULE}"]
    for day, entries in DAYS.items():
        rows, clock, computing = [], 9 * 60, 0.0
        for entry in entries.split(", "):
            minutes, _, what = entry.partition(" ")
            waiting = 0.0
            if part := halves.get(entry):
                minutes, waiting = 5 * math.ceil(sum(s.minutes for s in part) / 5), sum(s.computing for s in part)
                numbers = [section.title.split()[0] for section in part if section.title[0].isdigit()]
                what = f"Notebook {entry[0]}, sections {numbers[0]} to {numbers[-1] if entry[1] == 'a' else 'the end'}"
            rows += [f"| {clock // 60}:{clock % 60:02} | {minutes} | {f'{waiting:.0f}' if part else ''} | {what} |"]
            clock, computing = clock + int(minutes), computing + waiting
        told = (
            f"The end: {clock // 60}:{clock % 60:02}. {computing:.0f} minutes of it are computing: add them once more"
        )
        page += ["", f"## {day}", "", "| at | minutes | computing | |", "| --- | --- | --- | --- |", *rows, ""]
        page += [f"{told} for laptops that take twice as long as the machine of that run."]
    return "\n".join([*page, *tables, ""])


def write_workshop(folder: Path, root: Path = ROOT) -> Path:
    """Write the kit into `folder`; NotebookError if a notebook was not executed, or was another one then."""
    questions = tomllib.loads((root / "tools" / "workshop.toml").read_text(encoding="utf-8"))
    lessons = []
    for path in notebooks_of(root):
        executed, asked = root / "results" / "executed" / path.name, questions.pop(path.stem, {})
        if not executed.exists():
            raise NotebookError(path, "not in results/executed, so its minutes are missing. Execute it first: make run")
        student, instructor = sections_of(path, asked), sections_of(executed, asked)
        code = [[c.source for s in found for c in s.cells if c.cell_type == "code"] for found in (student, instructor)]
        if code[0] != code[1]:
            raise NotebookError(path, "in results/executed it has other code. Execute it again: make run")
        write_copy(path, student, folder / "student", solved=False)
        write_copy(executed, instructor, folder / "instructor", solved=True)
        lessons.append(instructor)
    if questions:
        raise NotebookError(Path("workshop.toml"), f"no notebook is called {', '.join(questions)}.")
    (folder / "plan.md").write_text(plan(lessons), encoding="utf-8")
    for page in PAGES:
        shutil.copy(root / "docs" / page, folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.workshop", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "results" / "workshop", help="results/workshop")
    try:
        print(f"{write_workshop(parser.parse_args().folder)}: read workshop.md and plan.md first.")
    except NotebookError as error:
        sys.exit(str(error))
