"""The lessons are lessons (short cells, prose, small files), their outputs are stored and fresh, and comparing them bites."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import blora_nb

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ALL = [*LESSONS, *sorted(FOLDER.glob("solutions/*.ipynb"))]
APP = FOLDER.parent / "app" / "blora.ipynb"
sys.path.insert(0, str(FOLDER))
import execute
import prepare


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def checked(cell):
    return "nbval-check-output" in cell.metadata.get("tags", [])


def prints_text(cell):
    """The cell has an output that nbval could compare."""
    return any(
        o.output_type == "stream"
        or (
            "text/plain" in o.get("data", {})
            and not any(kind.startswith("image/") for kind in o.data)
        )
        for o in cell.outputs
    )


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_outputs_are_stored_fresh_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(path)
    assert notebook.metadata.get("outputs_belong_to") == execute.stamp(notebook), (
        "the code or the model has changed since: make notebooks"
    )
    assert all(c.execution_count for c in cells if c.source.strip())
    assert not any(
        o.output_type == "error" or o.get("name") == "stderr" for c in cells for o in c.outputs
    ), "errors or warnings in the outputs"
    assert "widgets" not in notebook.metadata, (
        "GitHub refuses notebooks with half of the widget state"
    )
    assert all(c.outputs for c in cells if checked(c)), (
        "a checked cell without a stored output compares nothing"
    )
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_is_short_cells_between_prose(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [
        c
        for c in code_cells(path)
        if not {"setup", "stub", "check"} & set(c.metadata.get("tags", []))
    ]
    lengths = sorted(sum(bool(line.strip()) for line in c.source.splitlines()) for c in cells)
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[int(0.9 * len(lengths))] <= 18
    assert lengths[-1] <= 30
    prose = sum(
        len(c.source.split("<details>")[0].split())
        for c in notebook.cells
        if c.cell_type == "markdown"
    )
    assert 40 <= prose / len(cells) <= 120
    assert (
        sum("**Predict" in c.source or "**Before you run" in c.source for c in notebook.cells) >= 2
    )
    figures = [
        o
        for c in cells
        for o in c.outputs
        if "image/png" in o.get("data", {}) and "Figure" not in str(o.data.get("text/plain"))
    ]
    assert len(figures) >= 3 and all(
        o.metadata.get("image/png", {}).get("alt") or "PIL" in o.data["text/plain"] for o in figures
    ), "a figure without a caption"


def imports_from_modules(cell):
    """The (module, name) of what a cell imports from modules of blora_nb, not from its top."""
    found = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module, alias.name) for alias in node.names}
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
    lesson, handout = (
        nbformat.read(path, as_version=4),
        prepare.without_solutions(nbformat.read(path, as_version=4)),
    )
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
    assert [c.source for c in handout.cells if c.cell_type == "code"] == [
        c.source for c in lesson.cells if c.cell_type == "code"
    ]


def test_enough_cells_are_really_compared():
    printing = [c for path in ALL for c in code_cells(path) if prints_text(c)]
    compared = [c for c in printing if checked(c)]
    assert len(compared) >= 0.8 * len(printing)
    assert len(compared) >= 30


def test_comparing_bites(tmp_path):
    """nbval passes a cell with its true output, and fails one with a tampered output and one with a broken callback."""
    broken_callback = (
        "import ipywidgets\nipywidgets.interact(lambda x: 1 / (x - 1), x=ipywidgets.IntSlider(1))"
    )
    for name, source, stored in (
        ("true", "print(2 + 2)", "4\n"),
        ("tampered", "print(2 + 2)", "5\n"),
        ("broken", broken_callback, None),
    ):
        cell = nbformat.v4.new_code_cell(
            source, execution_count=1, metadata={"tags": ["nbval-check-output"] if stored else []}
        )
        cell.outputs = (
            [nbformat.v4.new_output("stream", name="stdout", text=stored)] if stored else []
        )
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rA",
            "-p",
            "no:cacheprovider",
            "--nbval-lax",
            "--nbval-current-env",
            ".",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        "PASSED true.ipynb" in run.stdout
        and "FAILED tampered.ipynb" in run.stdout
        and "FAILED broken.ipynb" in run.stdout
    ), run.stdout
