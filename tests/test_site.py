"""The site: built without a warning, and read in a browser without a network, on a desk and on a phone."""

import base64
import io
import itertools
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from conftest import LONG, NAMES
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import plots
from tools import site as program
from tools.run import ROOT

# Of myst-nb, about the next Sphinx.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
AXE = "axe-core@4.14.1"  # from the npm registry, for these tests only
NETWORKS = re.compile(rb"//[\w.-]*(jsdelivr|cloudflare|unpkg|googleapis|gstatic|mathjax|bootstrapcdn)", re.IGNORECASE)
VIEWS = [(1280, "light"), (390, "dark"), (1280, "dark"), (390, "light")]  # the last two by LONG=1 make test
WORDS = "Up: loss, across: step. A run from 3 to 1."


def executed(folder):
    """The four notebooks with made-up outputs of every kind, of which a text, a figure and a table are wide."""
    folder.mkdir()
    drawn = io.BytesIO()
    plots.curves({"a run": [3, 2, 1]}).figure.savefig(drawn)
    figure = base64.b64encode(drawn.getvalue()).decode()
    table = pd.DataFrame([range(1_000_000, 1_000_030)])
    bundles = [({"text/plain": "Box()", program.WIDGET: {"model_id": "0"}}, {})]
    bundles += [({"text/html": table.to_html(), "text/plain": str(table)}, {})]
    bundles += [({"image/png": figure, "text/plain": "<Figure>"}, {"image/png": {"alt": WORDS}})]
    for name in NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
            data, metadata = bundles[number % len(bundles)]
            cell.outputs = [new_output("stream", name="stdout", text=200 * "wide")]
            cell.outputs += [new_output("display_data", data=data, metadata=metadata)]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    assert program.build(executed(folder / "executed"), folder / "site") == 0, "Sphinx warns"
    return folder / "site"


class Tags(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if attributes.get(name)]


@pytest.fixture(scope="module")
def pages(site):
    """Every page by its path, with its tags."""
    return {path: Tags(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_all_pages_are_there_and_hold_what_they_should(site, pages):
    wanted = {"index", "search", "docs/results", "docs/faults", "docs/architectures", "docs/api", "data/README"}
    wanted |= {"data/language_model/README", "data/measurements/README", *(f"notebooks/{name}" for name in NAMES)}
    assert {path.relative_to(site).with_suffix("").as_posix() for path in pages} >= wanted
    front, lora = ((site / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "notebooks/02_lora"))
    assert "frozen features and a head" in front and "make run" in front  # the table of notebook 4, the README
    assert "<math" in lora and lora.count("Show the solution") >= 2
    assert "a box to type into" in lora and "model_id" not in lora
    api = (site / "docs" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="helpers.{name}"' in api for name in ("fit", "memory_bill", "plots.lines", "errors.DataError"))


def test_nothing_asks_a_network(site, pages):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert [path for path in files if NETWORKS.search(path.read_bytes())] == []
    loaded = [
        attributes.get("src") or attributes.get("href")
        for page in pages.values()
        for tag, attributes in page.tags
        if tag in ("img", "script", "link", "iframe", "source") and attributes.get("rel") != "canonical"
    ]
    assert loaded and not [address for address in loaded if address and urlsplit(address).scheme]


def test_links_and_pictures_resolve(pages):
    ids = {path: {*page.values("id"), "", "#"} for path, page in pages.items()}
    lost = []
    for path, page in pages.items():
        for address in page.values("href") + page.values("src"):
            scheme, _, file, _, fragment = urlsplit(address)
            target = (path.parent / unquote(file)).resolve() if file else path
            if not scheme and not (target.exists() and unquote(fragment) in ids.get(target, [fragment])):
                lost.append((path.name, address))
    assert not lost


def test_every_figure_says_what_it_shows(site, pages):
    words = [attributes.get("alt", "") for page in pages.values() for tag, attributes in page.tags if tag == "img"]
    assert words.count(WORDS) > 20 and min(map(len, words)) >= len(WORDS)


def test_a_notebook_that_was_not_run_is_refused_by_its_command(tmp_path):
    folder = executed(tmp_path / "executed")
    for path, change in ((folder / f"{NAMES[1]}.ipynb", "Without words"), (folder / f"{NAMES[2]}.ipynb", "missing")):
        text = path.read_text(encoding="utf-8")
        path.unlink() if change == "missing" else path.write_text(text.replace(WORDS, ""), encoding="utf-8")
        with pytest.raises(SystemExit, match=f"make run ARGS=notebooks/{path.name}"):
            program.stage(folder, tmp_path / "source")
        path.write_text(text, encoding="utf-8")
    program.stage(folder, tmp_path / "source")


def test_what_the_runner_adds_is_shown_only_where_it_changes_something():
    added = ['# Parameters\nresults_dir = "results"\n', '# Parameters\nsteps = 24\nresults_dir = "results"\n']
    cells = [new_markdown_cell("# Title"), *map(new_code_cell, added)]
    kept = [cell.source for cell in program.prepared(new_notebook(cells=cells), "any").cells]
    assert kept[1:] == added[1:] and kept[0].startswith("# Title\n\nThis page shows one run.")


def test_jupyter_saves_what_a_figure_shows():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.core.pylabtools import select_figure_formats

    shell = InteractiveShell.instance()
    try:
        plt.close("all")
        select_figure_formats(shell, {"png"})
        for _ in range(2):  # the second time it must not be wrapped again
            figure = plots.lines({"a": {8: [40.0], 32: [60.0]}}, xlabel="examples", ylabel="accuracy (%)").figure
        data, metadata = shell.display_formatter.format(figure)
        assert data["image/png"] and metadata["image/png"]["alt"] == plots.describe(figure)
        assert plots.describe(figure) == "up: accuracy (%), across: examples. a: from 40 (8) to 60 (32)."
    finally:
        InteractiveShell.clear_instance()


def test_figures_in_words():
    def said(drawn):
        return plots.describe(drawn.figure)

    rows = {"one": {"test": [50.0]}, "two": {"test": [1.0]}}
    assert said(plots.scores(rows, xlabel="accuracy (%)")) == "across: accuracy (%). test: from 1 (two) to 50 (one)."
    bars = {"full": {"weights": 2.0, "adapters": 0.0, "gradients": 3.0}}
    assert said(plots.parts(bars, xlabel="MiB", title="A step")) == "A step. across: MiB. full: weights 2, gradients 3."
    assert "the last 2 are trained" in said(plots.stack(6, 2))
    assert "NF4 has 3 values" in said(plots.levels(pd.Series([0.0, 0.5]), {"NF4": pd.Series([-1, 0, 1])}))


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, which looks for what keeps people out of a page."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if not npm:
        pytest.skip("no npm here, from which axe-core comes")
    run = subprocess.run([npm, "pack", AXE, "--pack-destination", folder], capture_output=True, text=True, timeout=60)
    if run.returncode:
        pytest.skip(f"npm gives no {AXE}: {run.stderr[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        return package.extractfile("package/axe.min.js").read().decode()


@pytest.mark.slow
def test_every_page_can_be_read_by_everybody(browser, site, pages, axe):
    """axe-core finds nothing, light and dark, at a desk and on a phone, where no page scrolls sideways."""
    page = browser.new_page()
    asked, found = [], []
    page.on("request", lambda request: asked.append(request.url))
    for path, (width, mode) in itertools.product(pages, VIEWS if LONG else VIEWS[:2]):
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(path.as_uri())
        page.evaluate("mode => { document.documentElement.dataset.theme = mode }", mode)
        wide = page.evaluate("document.documentElement.scrollWidth")
        found += [(path.name, width, "scrolls sideways", wide)] if wide > width else []
        page.add_script_tag(content=axe)
        for fault in page.evaluate("axe.run().then(found => found.violations)"):
            nodes = [node["html"][:200] for node in fault["nodes"]]
            found.append((path.name, width, mode, fault["id"], len(nodes), nodes[0]))
    page.close()
    assert not found
    assert asked and not [address for address in asked if not address.startswith(("file:", "data:"))]
