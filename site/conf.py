"""How Sphinx makes the book: extensions and the look. The pages come from build.py."""

import re
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]

project = PROJECT["name"]
release = PROJECT["version"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]

# the notebooks: shown as they are stored
nb_execution_mode = "off"
nb_merge_streams = True
# the widgets of a stored notebook do not move: their scripts, from other hosts, are not needed
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence"]
myst_heading_anchors = 4

# the reference: docstrings in Google's style, with names in single backticks
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autosummary_generate = False
# matplotlib writes a `set` into every figure's class
autodoc_default_options = {"exclude-members": "set"}
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 70
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

# the look
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
copybutton_selector = "div:not(.output) > div.highlight > pre"
html_theme_options = {
    "repository_url": PROJECT["urls"]["Repository"],
    "repository_branch": "main",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    # the search stands at the side already
    "navbar_persistent": [],
    "footer_content_items": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


# a name in backticks, and the letter after it, perhaps
QUOTED = re.compile(r"(`+[^`]+`+)(\w?)")


def separated(found: re.Match[str]) -> str:
    return f"{found[1]}\\ {found[2]}" if found[2] else found[1]


def as_rst(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Write a docstring's Markdown as Sphinx needs it: `BLoRA`s, and code that is indented."""
    if name == "blora_nb.settings.TrainingSettings":
        # they are in tables on the same page
        del lines[lines.index("Attributes:") :]
    written: list[str] = []
    before = ""  # the last line with text
    for line in lines:
        starts_block = line.startswith("    ") and written and not written[-1]
        if starts_block and not before.startswith(" ") and not before.endswith(":"):
            written += ["::", ""]
        before = line or before
        written.append(QUOTED.sub(separated, line))
    lines[:] = written


def short_types(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: Any,
    arguments: str | None,
    returns: str,
) -> tuple[str, str] | None:
    """Leave out the modules of the types that a dataclass names in full."""
    return (re.sub(r"~(\w+\.)+", "", arguments), returns) if arguments else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", short_types)
    # before napoleon reads the docstring
    app.connect("autodoc-process-docstring", as_rst, priority=100)
