"""The first cell of every notebook, on a machine that has torch but not the course."""

import os
import subprocess
import sys
import sysconfig

import pytest

from conftest import ROOT
from prepare import ADDRESS, FIRST_CELL

pytestmark = pytest.mark.slow
# a small package without dependencies that nothing here needs
SMALL = "toolz"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that sees the packages of this one, as Colab's has many, but not the course."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    (site / "packages_of_the_host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python, code, where):
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", code]
    done = subprocess.run(command, cwd=where, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git repository to clone from")
def test_it_fetches_the_course_and_can_run_twice(bare_python, tmp_path):
    cell = FIRST_CELL.replace(ADDRESS, ROOT.as_uri())
    assert cell != FIRST_CELL
    where = "import os, blora_nb, checks\nprint(os.getcwd(), blora_nb.__file__)"
    out = run(bare_python, f"{cell}\n{cell}\n{where}", tmp_path)
    clone = tmp_path / "blora-nb"
    assert out.split() == [str(clone / "notebooks"), str(clone / "blora_nb" / "__init__.py")]


@pytest.mark.parametrize("start", [".", "notebooks", "notebooks/solutions", "outputs/handout"])
def test_in_a_clone_it_only_finds_the_folder_of_the_lessons(bare_python, start):
    (ROOT / start).mkdir(parents=True, exist_ok=True)
    code = f"{FIRST_CELL}\nimport os, blora_nb, checks\nprint(os.getcwd())"
    out = run(bare_python, code, ROOT / start)
    assert out.split() == [str(ROOT / "notebooks")]


def test_only_what_is_missing_is_installed_and_nothing_else_moves(bare_python, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import importlib.metadata as metadata
from packaging.requirements import Requirement
from blora_nb.cli import check
before = metadata.version("torch"), metadata.version("numpy")
real = check.requirements()
check.requirements = lambda: real | {{"{SMALL}": Requirement("{SMALL}>=0.11")}}
print(check.install_missing())
import {SMALL}
assert before == (metadata.version("torch"), metadata.version("numpy"))
print(check.install_missing())
"""
    out = run(bare_python, code, tmp_path)
    assert out.splitlines()[1:] == [f"['{SMALL}>=0.11']", "[]"]
