"""The lessons are lessons: short cells, prose, small files.

Their outputs are stored and fresh, and comparing them bites.
"""

import ast
import subprocess
import sys

import nbformat
import pytest

import blora_nb
import execute
import prepare
from conftest import ROOT

FOLDER = ROOT / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ALL = [*LESSONS, *sorted(FOLDER.glob("solutions/*.ipynb"))]
APP = ROOT / "app" / "blora.ipynb"


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def sources(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def checked(cell):
    return "nbval-check-output" in cell.metadata.get("tags", [])


def is_text(output):
    """Whether nbval could compare it."""
    if output.output_type == "stream":
        return True
    kinds = output.get("data", {})
    return "text/plain" in kinds and not any(kind.startswith("image/") for kind in kinds)


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_outputs_are_stored_fresh_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(path)
    fresh = notebook.metadata.get("outputs_belong_to") == execute.stamp(notebook)
    assert fresh, "the code or the model has changed since: make notebooks"
    assert all(c.execution_count for c in cells if c.source.strip())
    outputs = [output for cell in cells for output in cell.outputs]
    bad = [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert bad == [], "errors or warnings in the outputs"
    halved = "widgets" in notebook.metadata
    assert not halved, "GitHub refuses notebooks with half of the widget state"
    empty = [cell for cell in cells if checked(cell) and not cell.outputs]
    assert empty == [], "a checked cell without a stored output compares nothing"
    assert path.stat().st_size < 400_000


NO_LESSON = {"setup", "stub", "check"}


def is_figure(output):
    text = output.get("data", {}).get("text/plain")
    return "image/png" in output.get("data", {}) and "Figure" not in str(text)


def has_caption(figure):
    return figure.metadata.get("image/png", {}).get("alt") or "PIL" in figure.data["text/plain"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_is_short_cells_between_prose(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [c for c in code_cells(path) if not NO_LESSON & set(c.metadata.get("tags", []))]
    lengths = sorted(sum(bool(line.strip()) for line in c.source.splitlines()) for c in cells)
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[int(0.9 * len(lengths))] <= 18
    assert lengths[-1] <= 30
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    prose = sum(len(text.split("<details>")[0].split()) for text in texts)
    assert 40 <= prose / len(cells) <= 120
    starts = ("**Predict", "**Before you run")
    assert sum(any(start in c.source for start in starts) for c in notebook.cells) >= 2
    figures = [output for cell in cells for output in cell.outputs if is_figure(output)]
    assert len(figures) >= 3
    assert all(map(has_caption, figures)), "a figure without a caption"


def imports_from_modules(cell):
    """The (module, name) of what a cell imports from modules of blora_nb, not from its top."""
    found = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module, alias.name) for alias in node.names}
    found.discard(("blora_nb.course", "checks"))  # of the exercises, not of the lesson
    return {(module, name) for module, name in found if module.startswith("blora_nb.")}


@pytest.mark.parametrize("path", [*ALL, APP], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_cells_are_narrow_and_import_from_the_top(path):
    cells = code_cells(path)
    lines = [line for cell in cells for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 100] == []
    imported = set()
    for cell in cells:
        if "setup" not in cell.metadata.get("tags", []):
            imported |= imports_from_modules(cell)
    assert {name for _, name in imported} & set(blora_nb.__all__) == set(), (
        "the top of blora_nb offers these"
    )
    assert len({module for module, _ in imported}) <= 2


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_is_handed_out_without_its_solutions_and_with_all_else(path):
    lesson = nbformat.read(path, as_version=4)
    handout = prepare.without_solutions(nbformat.read(path, as_version=4))
    solved = [
        prepare.folded_solution(cell.source)
        for cell in lesson.cells
        if "### BEGIN SOLUTION" in cell.source
    ]
    text = "\n".join(cell.source for cell in handout.cells)
    assert len(solved) >= 2
    assert not any(solution in text for solution in solved)
    assert "SOLUTION" not in text
    assert text.count("<summary>Hint</summary>") == len(solved)
    assert not any(cell.get("outputs") for cell in handout.cells)
    assert sources(handout) == sources(lesson)


def test_enough_cells_are_really_compared():
    printing = [c for path in ALL for c in code_cells(path) if any(map(is_text, c.outputs))]
    compared = [c for c in printing if checked(c)]
    assert len(compared) >= 0.8 * len(printing)
    assert len(compared) >= 30


BROKEN_CALLBACK = """
import ipywidgets
ipywidgets.interact(lambda x: 1 / (x - 1), x=ipywidgets.IntSlider(1))
"""
CELLS = {  # name of the notebook: (source, stored output)
    "true": ("print(2 + 2)", "4\n"),
    "tampered": ("print(2 + 2)", "5\n"),
    "broken": (BROKEN_CALLBACK, None),
}


@pytest.mark.slow
def test_comparing_bites(tmp_path):
    """nbval passes a cell with its true output; it fails a tampered one and a broken callback."""
    for name, (source, stored) in CELLS.items():
        tags = {"tags": ["nbval-check-output"] if stored else []}
        cell = nbformat.v4.new_code_cell(source, execution_count=1, metadata=tags)
        if stored:
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
        notebook = nbformat.v4.new_notebook(cells=[cell])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    command += ["--nbval-lax", "--nbval-current-env", "."]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "PASSED true.ipynb" in said
    assert "FAILED tampered.ipynb" in said
    assert "FAILED broken.ipynb" in said
