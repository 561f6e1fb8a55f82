"""The site of `make site`: what Sphinx and its theme are told. Nothing of it asks a network, built or read."""

import re
import tomllib
from pathlib import Path
from posixpath import dirname, join, normpath

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes

ROOT = Path(__file__).resolve().parent.parent
ABOUT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "Fine-tuning techniques, hands on"
version = release = ABOUT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md", "guide.md"]  # parts of the front page
highlight_language = "none"

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the signature of a source file says them; here they would be most of the page
autodoc_member_order = "bysource"

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = html_use_index = html_domain_indices = False
html_math_renderer = "mathml"
html_sidebars = {"**": ["pages"]}
html_theme_options = {
    "logo": {"text": "Fine-tuning, hands on"},
    "navbar_center": [],
    "icon_links": [{"name": "Repository", "url": ABOUT["urls"]["Repository"], "icon": "fa-brands fa-github"}],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "show_toc_level": 2,
    "back_to_top_button": False,
    "footer_start": [],
    "footer_end": [],
}


def formula(translator, node):
    """A formula as MathML, which browsers draw themselves."""
    block = isinstance(node, nodes.math_block)
    text = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula" tabindex="0">{text}</div>' if block else text)
    raise nodes.SkipNode


def to_the_repository(app, doctree):
    """A link to a file that is no page here leads to the repository."""
    for node in doctree.findall(addnodes.pending_xref):
        path = normpath(join(dirname(app.env.docname), node["reftarget"]))
        if node["reftype"] == "myst" and (ROOT / path).is_file():
            address = f"{ABOUT['urls']['Repository']}/blob/v{version}/{path}"
            node.replace_self(nodes.reference("", "", *node.children, refuri=address))


def for_everybody(app, page, template, context, doctree):
    """Mends the HTML of pandas, docutils and myst-nb: heads of nothing, a label that hides its text."""
    body = re.sub(r"<th[^>]*>(?:<p></p>)?</th>", "<td></td>", context.get("body", ""))
    context["body"] = body.replace(' aria-label="Toggle hidden content"', "")


def setup(app):
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("doctree-read", to_the_repository)
    app.connect("html-page-context", for_everybody)
