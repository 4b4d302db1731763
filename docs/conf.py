"""The site: plain Markdown that also renders in a repository browser, an executed gallery, and the reference."""

import importlib
import inspect
import os
import re
from importlib.metadata import version as version_of

from sphinx.util import logging

# At the sizes of the gallery more threads only wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "retract"
author = "The retract authors"
copyright = author
version = release = version_of("retract")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_external_toc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["gallery", "examples"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["etoc.toctree"]  # the gallery's own list of its pages

html_theme = "furo"
html_title = f"retract {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 110
add_module_names = False
# Docstrings are written for people in front of an editor: a name is put between single backticks, as in Markdown.
default_role = "py:obj"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "write_computation_times": False,
    "run_stale_examples": True,
    "show_memory": False,
    "show_signature": False,
}

PUBLIC = [
    "retract",
    "retract.manifolds",
    "retract.manifolds.checks",
    "retract.errors",
    "retract.manifolds.numerics",
    "retract.optim",
    "retract.psi",
    "retract.psi.data",
    "retract.psi.figure1",
    "retract.testing",
]
"""The modules whose names the reference must explain."""


def _members(cls):
    """Names of methods and of fields, with a default or without."""
    return {*vars(cls), *vars(cls).get("__annotations__", ())}


def tell_undocumented(app, env):
    """A warning, which fails the build, for every public name and member that the reference does not explain."""
    known = env.domains.python_domain.objects
    names = {}  # of the same thing, which may be public in several modules
    for module in PUBLIC:
        face = importlib.import_module(module)
        for name in face.__all__:
            names.setdefault(getattr(face, name), []).append(f"{module}.{name}")
    for thing, paths in names.items():
        if inspect.ismodule(thing) or isinstance(thing, str):
            continue
        documented = [path for path in paths if path in known]
        own = _members(thing).difference(*map(_members, thing.__mro__[1:])) if inspect.isclass(thing) else set()
        members = [f"{path}.{key}" for path in documented for key in sorted(own) if key[0] != "_"]
        for path in [*members, *([] if documented else paths)]:
            if path not in known:
                logging.getLogger(__name__).warning("%s is public and not documented", path)


def escape(app, what, name, obj, options, lines):
    """Shapes, (*batch, *event), and absolute values, |x|, are no markup, and what an attribute is stands in its annotation: napoleon
    would take everything in front of a colon in its first line for its type."""
    lines[:] = [re.sub(r"\*(?=batch|event)|\|", r"\\\g<0>", line) for line in lines]
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def setup(app):
    """Sphinx calls it."""
    app.connect("env-check-consistency", tell_undocumented)
    app.connect("autodoc-process-docstring", escape, priority=400)
