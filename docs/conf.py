"""Sphinx configuration."""

import re
from importlib.metadata import version as installed_version

from sphinx.application import Sphinx

project = "spherediff"
author = "The spherediff authors"
project_copyright = "the spherediff authors"
release = version = installed_version("spherediff")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
]
html_theme = "furo"
html_title = f"spherediff {release}"
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]

autosummary_generate = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes described in a class docstring are not described a second time as members.
napoleon_use_ivar = True

_LITERAL_OR_SHAPE = re.compile(r"(``.*?``)|\*(?=\w+[.,)])")


def _escape_shapes(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Docstrings write shapes plainly, as (*batch, n), where markup would see emphasis."""
    lines[:] = [_LITERAL_OR_SHAPE.sub(lambda found: found[1] or r"\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape_shapes)
