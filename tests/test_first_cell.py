"""The first cell of every notebook, on a machine that has torch but not the course."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from prepare import ADDRESS, FIRST_CELL

pytestmark = pytest.mark.slow


def run_cells(python, cells, where):
    """What the cells print, one after another in one IPython, as in a notebook's kernel."""
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in {cells!r}:
    shell.run_cell(cell).raise_error()
"""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=where, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


VERSIONS = """
from importlib.metadata import distributions
others = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
others.pop("blora-nb", None)
"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git repository to install from")
def test_it_installs_the_course_and_nothing_else_moves(bare_python, tmp_path):
    cell = FIRST_CELL.replace(ADDRESS, ROOT.as_uri())
    assert cell != FIRST_CELL
    compared = "before = others\n" + VERSIONS + "assert others == before"
    use = "from blora_nb import example_picture\nfrom blora_nb.course import checks\nprint('here')"
    out = run_cells(bare_python, [VERSIONS, cell, compared, use, cell], tmp_path)
    assert out.split()[-1] == "here"


@pytest.mark.parametrize("start", [".", "notebooks", "notebooks/solutions"])
def test_where_the_course_is_installed_it_does_nothing(start):
    assert run_cells(sys.executable, [FIRST_CELL], ROOT / start) == ""
