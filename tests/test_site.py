"""The book is built without a warning, whole, with links that lead somewhere and no other host."""

import re
import subprocess
import sys

import pytest

import blora_nb
from built_pages import broken, is_external, read_pages
from conftest import ROOT

pytest.importorskip("sphinx", reason='the book needs pip install -e ".[site]"')
pytest.importorskip("myst_nb", reason='the book needs pip install -e ".[site]"')
pytest.importorskip("sphinx_book_theme", reason='the book needs pip install -e ".[site]"')
pytestmark = pytest.mark.slow

NOTEBOOKS = ROOT / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
TEXTS = [
    *LESSONS,
    *(NOTEBOOKS / "solutions").glob("[0-9]*.ipynb"),
    *(ROOT / "benchmarks").glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    NOTEBOOKS / "TEACHING.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
LOADED_IN_CSS = re.compile(r"(?:url\(|@import\s)\s*['\"]?(?:https?:)?//")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The built book."""
    to = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-W", "ignore", "site/build.py", "--to", to]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("0 warnings")
    return to


@pytest.fixture(scope="module")
def pages(folder):
    return read_pages(folder)


def test_every_link_leads_somewhere(pages):
    assert broken(pages) == []


def test_every_text_has_its_page(pages, folder):
    built = {path.relative_to(folder.resolve()) for path in pages}
    wanted = {path.relative_to(ROOT).with_suffix(".html") for path in TEXTS}
    assert wanted - built == set()


def test_every_name_of_the_top_has_its_anchor(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    names = {f"{blora_nb.MODULE_OF[name]}.{name}" for name in blora_nb.__all__}
    assert names - anchors == set()


def test_opening_a_page_asks_no_other_host(pages, folder):
    assert [name for page in pages.values() for name in page.loaded if is_external(name)] == []
    sheets = folder.rglob("*.css")
    assert [path for path in sheets if LOADED_IN_CSS.search(path.read_text("utf-8"))] == []


def figures_of(path):
    """How many pictures a lesson has stored, and the captions of those with one."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    captions = {o.metadata.get("image/png", {}).get("alt", "") for o in pictures} - {""}
    return len(pictures), captions


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_figure_of_a_lesson_is_in_it_and_in_the_gallery(pages, folder, lesson):
    number, captions = figures_of(lesson)
    page = pages[folder.resolve() / "notebooks" / f"{lesson.stem}.html"]
    gallery = pages[folder.resolve() / "gallery.html"]
    # the logo is a picture, too
    assert len(page.pictures) > number
    assert captions - set(page.pictures) == set()
    assert captions - set(gallery.pictures) == set()


def test_folded_code_is_folded_and_solutions_too(folder):
    page = (folder / "notebooks" / "03_style_transfer.html").read_text("utf-8")
    assert page.count("tag_hide-input") == 2
    assert page.count("sd-summary-text") == 8
    assert "SOLUTION" not in page
