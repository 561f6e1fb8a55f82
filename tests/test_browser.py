"""Boxes and sliders in JupyterLab, through Debian's Chromium: what is typed or moved is answered below, as seen."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial

import nbformat
import pytest
import tiny
from conftest import LONG, NAMES, OWN_CODE, SHORT

from tools.run import ROOT

# Parameters that make a notebook short, and the architectures of its models, which are tiny and random.
TINY = {"encoder": "bert", "language_model": "llama 3"}
QUICK = {NAMES[0]: (SHORT, ["encoder"]), NAMES[1]: (OWN_CODE, TINY), NAMES[2]: ({}, []), NAMES[3]: (OWN_CODE, TINY)}
# Added to a copy: it waits for three seconds behind a bar.
WAITING = 'import time\nfor _ in helpers.progress(range(30), "waiting"):\n    time.sleep(0.1)'
SETTINGS = {  # by plug-in, as the settings editor writes them
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, also beyond its edge
}
FAULTS = '.jp-Dialog, [data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"]'
MINUTE = 60_000  # in Playwright's milliseconds
WHOLE = 20_000  # characters of a figure; where two threads drew at once, only bars were left, 3,000


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """JupyterLab on a free port with settings of its own: its folder and its address, which ends before the token."""
    folder = tmp_path_factory.mktemp("lab")
    for plugin, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    (folder / "notebooks").mkdir()
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    places |= {"IPYTHONDIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0"]
    command += ["--LabApp.extension_manager=readonly", f"--ServerApp.root_dir={folder / 'notebooks'}"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    try:
        until = time.time() + 120
        while not (found := list(folder.glob("runtime/jpserver-*.json"))):
            assert time.time() < until and server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        told = json.loads(found[0].read_text())
        yield folder / "notebooks", f"{told['url']}lab/workspaces/NAME/tree/NAME.ipynb?token={told['token']}"
    finally:
        server.terminate()  # it ends its kernels
        server.wait(60)


@pytest.fixture(scope="module")
def opened(browser, lab):
    """A function that opens a notebook and runs it up to its widget."""
    from playwright.sync_api import expect  # here: without it `browser` has skipped

    return partial(Opened, browser, expect, lab)


class Opened:
    """A notebook in JupyterLab, run up to its widget; `cell` is the one that has it."""

    def __init__(self, browser, expect, lab, name, quick=True):
        folder, address = lab
        self.file, self.expect, self.complaints = folder / f"{name}.ipynb", expect, []
        write_copy(name, self.file, quick)
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(MINUTE)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda told: told.type == "error" and self.complaints.append(told.text))
        self.page.goto(address.replace("NAME", name))
        self.page.get_by_text("(ipykernel) | Idle").wait_for(timeout=3 * MINUTE)
        for name in ("Run", "Run All Cells"):
            self.page.get_by_role("menuitem", name=name, exact=True).click()
        self.last = self.page.locator(".jp-CodeCell").last
        self.cell = self.page.locator(".jp-CodeCell", has=self.page.locator(".jupyter-widgets"))
        ran = self.last.locator(".jp-InputPrompt", has_text=re.compile(r"\d"))
        ran.or_(self.page.locator(FAULTS)).first.wait_for(timeout=15 * MINUTE)
        self.is_clean()

    def is_clean(self):
        self.expect(self.page.locator(FAULTS)).to_have_count(0)
        self.expect(self.page.get_by_text("Error displaying widget")).to_have_count(0)
        assert self.complaints == [], "the browser's console"

    def printed(self, place):
        return words(place.locator('[data-mime-type$="jupyter.stdout"]').all_inner_texts())

    def figures(self, place):
        return [image.get_attribute("src") for image in place.locator(".jp-RenderedImage img").all()]

    def typed(self, text, shown):
        """Type into the box; returns what stands below it once it is no longer `shown`."""
        box = self.cell.locator("input")
        box.fill(text)
        box.press("Enter")
        below = self.cell.locator(".widget-vbox > .widget-label, textarea")
        read = "place => place.value ?? place.innerText"
        until = time.time() + 60
        while (answer := words([below.evaluate(read)])) == shown and time.time() < until:
            time.sleep(0.2)
        return answer

    def planned(self, shown):
        """Press the button; returns figure and lines once the figure is no longer `shown`."""
        self.cell.get_by_role("button", name="Run Interact").click()
        until = time.time() + 120
        while (found := self.figures(self.cell)) in ([], shown) and time.time() < until:
            time.sleep(0.2)
        return found, self.printed(self.cell)

    def saved(self):
        before = self.file.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        until = time.time() + 30
        while self.file.stat().st_mtime_ns == before and time.time() < until:
            time.sleep(0.2)
        return nbformat.read(self.file, as_version=4)


def words(texts):
    """Without the line breaks, which a page has in other places than a text."""
    return " ".join(" ".join(texts).split())


def write_copy(name, file, quick):
    """The code of a notebook up to its widget and the plain call, and one cell that waits."""
    parameters, kinds = QUICK[name] if quick else ({}, [])
    models = {kind: str(tiny.made(TINY[kind], file.with_name(f"{file.stem}-{kind}"))) for kind in kinds}
    values = {**parameters, **models, "results_dir": str(file.with_name("results"))}
    given = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    notebook = nbformat.read(ROOT / "notebooks" / file.name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = next(n for n, cell in enumerate(cells, 1) if "parameters" in cell.metadata.get("tags", []))
    widget = max(n for n, cell in enumerate(cells, 1) if re.search(r"^widgets\.", cell.source, re.M))
    plain = widget + (name == NAMES[2])  # there it stands in the next cell
    notebook.cells = [*cells[:tagged], nbformat.v4.new_code_cell(given), *cells[tagged:plain]]
    notebook.cells += [nbformat.v4.new_code_cell(WAITING)] if name == NAMES[2] else []
    nbformat.write(notebook, file)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (NAMES[0], "Which rate should I take for the last layer?"),
        (NAMES[1], "def add(one, other):"),
        (NAMES[3], "def add(one, other):"),
    ],
)
def test_what_is_typed_is_answered_as_by_the_plain_call(opened, name, other):
    notebook = opened(name)
    source = nbformat.read(notebook.file, as_version=4).cells[-1].source
    (asked,) = re.findall(r'^print\(\w+\("(.+)"\)\)$', source, re.M)
    plain = notebook.printed(notebook.cell)
    answer = notebook.typed(asked, shown="")
    assert answer == plain != ""
    assert notebook.typed(other, shown=answer) not in ("", answer)
    notebook.is_clean()


@pytest.fixture(scope="module")
def planner(opened):
    return opened(NAMES[2])


def test_the_planner_plans_what_its_knobs_say(planner):
    """As it opens it has the plain call's figure and lines, and again with the mark; then all is moved."""
    plain = planner.page.locator(".jp-CodeCell").nth(-2)
    without, checkpointed = planner.figures(plain)
    assert without != checkpointed
    first, lines = planner.planned([])
    assert first == [without] and lines in planner.printed(plain)
    planner.cell.get_by_role("checkbox").check()
    second, lines = planner.planned(first)
    assert second == [checkpointed] and lines in planner.printed(plain)
    for slider, key, value in (("length", "End", "2048"), ("batch", "ArrowRight", "2")):
        knob = planner.cell.locator(".widget-slider", has_text=slider)
        knob.get_by_role("slider").press(key)
        planner.expect(knob.locator(".widget-readout")).to_have_text(value)
    planner.cell.get_by_role("combobox").first.select_option("Llama-2-13B")  # which takes longer to count
    third, other = planner.planned(second)
    assert len(third) == 1 and third != second and other not in ("", lines)
    assert len(third[0]) > WHOLE
    planner.is_clean()


def test_who_waits_sees_a_bar_move_and_nothing_is_left(planner):
    """In the saved notebook neither: no state of widgets, no dead view, no text but blanks."""
    planner.last.locator(".jp-InputArea").click()
    planner.page.keyboard.press("Control+Enter")
    seen, until = set(), time.time() + 60
    while ("waiting" in (shown := planner.printed(planner.last)) or not seen) and time.time() < until:
        seen |= set(re.findall(r"waiting: +(\d+)%", shown))
    assert len(seen) > 1 and shown == ""
    notebook = planner.saved()
    assert "widgets" not in notebook.metadata
    assert [output.text.strip() for output in notebook.cells[-1].outputs] == [""]


@pytest.mark.skipif(not LONG, reason="the shipped models take minutes: LONG=1 make test ARGS='-k pictures'")
def test_pictures(opened):
    """Written to results/pictures, for the site: a question answered, and the planner."""
    folder = ROOT / "results" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (NAMES[0], NAMES[2]):
        notebook = opened(name, quick=False)
        if name == NAMES[0]:
            notebook.typed("After some steps the loss is NaN.", shown="")
        else:
            notebook.cell.get_by_role("combobox").first.select_option("Llama-2-13B")
            notebook.cell.get_by_role("checkbox").check()
            notebook.planned([])
        notebook.cell.locator(".jupyter-widgets").first.evaluate("place => place.scrollIntoView(false)")
        notebook.page.wait_for_timeout(2000)  # until all is painted
        notebook.page.screenshot(path=folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 20_000
        notebook.page.close()
