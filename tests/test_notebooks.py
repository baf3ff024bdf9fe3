"""That nbval compares something: outputs are stored, enough cells are checked, and a tampered output fails."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9]*.ipynb"))


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def checked(cell):
    return "nbval-check-output" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored_and_small(path):
    cells = code_cells(path)
    assert all(c.execution_count for c in cells), "execute the notebooks: make notebooks"
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.outputs)
    assert path.stat().st_size < 300_000
    assert all(c.outputs for c in cells if checked(c)), "a checked cell without a stored output compares nothing"


def test_enough_cells_are_really_compared():
    assert sum(checked(c) for path in NOTEBOOKS for c in code_cells(path)) >= 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_stay_short(path):
    lengths = sorted(sum(bool(line.strip()) for line in c.source.splitlines()) for c in code_cells(path))
    assert lengths[len(lengths) // 2] <= 8 and lengths[-1] <= 30


def test_a_tampered_output_fails(tmp_path):
    """The first checked cell of notebook 0, alone, with its stored output changed by one character."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    first = next(i for i, c in enumerate(notebook.cells) if checked(c))
    notebook.cells = [c for c in notebook.cells[: first + 1] if "import" in c.source or checked(c)]
    for cell in notebook.cells:
        cell.source = cell.source.replace("../data", str(NOTEBOOKS[0].parent.parent / "data"))
    run = lambda: subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", "nb.ipynb"], cwd=tmp_path, capture_output=True, text=True)
    nbformat.write(notebook, tmp_path / "nb.ipynb")
    assert run().returncode == 0
    notebook.cells[-1].outputs[0].text = notebook.cells[-1].outputs[0].text.replace("16 objects", "17 objects")
    nbformat.write(notebook, tmp_path / "nb.ipynb")
    assert "17 objects" in (failed := run()).stdout and failed.returncode == 1
