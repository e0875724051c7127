"""The static site: the executed notebooks as pages that load nothing from the network (`make site`)."""

from __future__ import annotations

import json

project = "HRInversion companion"
author = copyright = "the HRInversion companion authors"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
myst_enable_extensions = ["amsmath", "dollarmath"]
nb_execution_mode = "off"  # `hrlab run` has executed them and checked their results
nb_ipywidgets_js = {}  # the pages show static pictures, so they need no widget code from a CDN
html_theme = "sphinx_book_theme"
html_title = project
html_copy_source = False
suppress_warnings = ["toctree.empty_glob"]  # an archive without git has no committed run to compare with


FOLDED = {"solution", "injected-parameters"}  # the latter: the run's values, which the cell above shows as well


def _fold(app, docname: str, source: list[str]) -> None:
    """Fold the solutions of the exercises, and the cell that the batch run added."""
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if FOLDED.intersection(tags):
            cell["metadata"]["tags"] = [*tags, "hide-cell"]
    source[0] = json.dumps(notebook)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _fold)
