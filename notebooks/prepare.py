"""Write what all notebooks share: badges and facts, the first cell, slide marks, and the solutions.

    python notebooks/prepare.py                       # after changing a lesson
    python notebooks/prepare.py --without-solutions   # lessons to hand out, into outputs/handout

The outputs are stored afterwards, by execute.py. The address of the repository is in
pyproject.toml. A solution notebook holds its lesson's exercises, with each stub replaced by the
solution that is folded into the text: so a solution is written only once.
"""

import ast
import re
import sys
import tomllib
from argparse import ArgumentParser
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).resolve().parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]
LESSONS = sorted(HERE.glob("[0-9]*.ipynb"))
HANDOUT = HERE.parent / "outputs" / "handout"


class Facts(NamedTuple):
    """What the head of a lesson says.

    The minutes on a T4 are computed: 10 TFLOP/s make 41 s for a picture of 30 steps, and 1.1 s for
    a training step.
    """

    needed: str
    minutes: float  # on two CPU cores, with the teaching model
    minutes_on_t4: int  # with SDXL
    minutes_of_training: int  # of these, for B-LoRAs that are then kept


FACTS = {
    "00_setup": Facts("a little Python", 1, 15, 0),
    "01_train_blora": Facts("notebook 0", 3, 75, 0),
    "02_inspect_block_attention": Facts(
        "notebooks 0 and 1; you should be comfortable with tensors", 1, 40, 20
    ),
    "03_style_transfer": Facts("notebook 1", 2, 230, 130),
    "04_text_stylization": Facts("notebook 3", 2, 120, 55),
    "05_consistent_style": Facts("notebook 3", 1.5, 110, 55),
}

FIRST_CELL = f"""\
# Installs the course on Colab and Kaggle; does nothing where it is installed.
import importlib.util

if not importlib.util.find_spec("blora_nb"):
    %pip install --quiet "git+{ADDRESS}\""""

HEAD = """\
[![Open in Colab]({colab}-badge.svg)]({colab_page}) \
[![Open in Kaggle]({kaggle}.svg)]({kaggle_page}) \
[![Open in Binder]({binder}.svg)]({binder_page})

| | teaching model, two CPU cores | real SDXL on a T4 (computed, not run) |
|---|---|---|
| minutes | {minutes} | {minutes_on_t4} |
| memory | 1 GB | 11 GB of GPU memory |
| download | nothing beyond the package | 8 GB: SDXL and the scoring models |

**You need** {needed}."""

FIGURES = (
    "picture_grid",
    "heat_map",
    "line_figure",
    "alpha_grid",
    "seed_ranking",
    "loss_curve",
    "AlphaPanel",
    "CheckpointPicker",
)
FIGURE = re.compile(rf"^({'|'.join(FIGURES)})\(", re.M)
FOLDED = re.compile(r"```python\n(### BEGIN SOLUTION.*?### END SOLUTION)\n```", re.S)
END_OF_FUNCTION = re.compile(r"^( .*)\n(### END SOLUTION)", re.M)
SOLUTION = re.compile(r"\n*<details><summary>Solution</summary>.*?</details>", re.S)


def head(stem: str) -> str:
    """Badges, and a table of what the lesson needs."""
    facts = FACTS[stem]
    minutes_on_t4 = str(facts.minutes_on_t4)
    if facts.minutes_of_training:
        training = facts.minutes_of_training
        minutes_on_t4 += f", {training} of them for B-LoRAs that are trained once and kept"
    page = f"{ADDRESS}/blob/main/notebooks/{stem}.ipynb"
    colab_page = page.replace("https://github.com", "https://colab.research.google.com/github")
    binder = ADDRESS.replace("https://github.com", "https://mybinder.org/v2/gh")
    return HEAD.format(
        colab="https://colab.research.google.com/assets/colab",
        colab_page=colab_page,
        kaggle="https://kaggle.com/static/images/open-in-kaggle",
        kaggle_page=f"https://kaggle.com/kernels/welcome?src={page}",
        binder="https://mybinder.org/badge_logo",
        binder_page=f"{binder}/main?labpath=notebooks/{stem}.ipynb",
        minutes=facts.minutes,
        minutes_on_t4=minutes_on_t4,
        needed=facts.needed,
    )


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def slide_type(cell: NotebookNode) -> str:
    """Headings and figures are slides; prose under a heading becomes the speaker's notes."""
    if cell.cell_type == "markdown":
        return "slide" if cell.source.startswith(("# ", "## ")) else "notes"
    return "subslide" if FIGURE.search(cell.source) else "skip"


def number_cells(cells: list[NotebookNode]) -> None:
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"


def prepare(notebook: NotebookNode, stem: str) -> NotebookNode:
    """The notebook with its shared cells as they should be; `notebook` is changed."""
    if not any(tagged(cell, "head") for cell in notebook.cells):
        notebook.cells.insert(1, new_markdown_cell(metadata={"tags": ["head"]}))
    for cell in notebook.cells:
        if tagged(cell, "head"):
            cell.source = head(stem)
        if tagged(cell, "setup"):
            cell.source = FIRST_CELL
        # the tag is read by Jupyter Book, the metadata by JupyterLab
        if tagged(cell, "hide-input"):
            cell.metadata["jupyter"] = {"source_hidden": True}
        cell.metadata["slideshow"] = {"slide_type": slide_type(cell)}
    number_cells(notebook.cells)
    return notebook


def folded_solution(text: str) -> str:
    """The code between the solution marks of an exercise's text, marks included."""
    found = FOLDED.search(text)
    if found is None:
        raise ValueError(f"This exercise has no folded solution:\n{text}")
    return found[1]


def names_used(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def with_needed_imports(source: str, used: set[str]) -> str:
    """A cell's source without the imported names that are not in `used`."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        node.names = [alias for alias in node.names if (alias.asname or alias.name) in used]
        needed = [ast.unparse(node)] if node.names else []
        lines[node.lineno - 1 : node.end_lineno] = needed
    return "\n".join(lines).strip()


def solutions(notebook: NotebookNode, stem: str) -> NotebookNode:
    """A notebook of the lesson's exercises, solved."""
    title = (
        f"# {int(stem[:2])} · Solutions\n\nTo the exercises of [{stem}](../{stem}.ipynb); made "
        "from its folded solutions by `python notebooks/prepare.py`."
    )
    cells = [new_markdown_cell(title)]
    exercise = ""
    for cell in notebook.cells:
        source, metadata = cell.source, {}
        if tagged(cell, "setup"):
            metadata = {"tags": ["setup"]}
        elif tagged(cell, "stub"):
            # in a cell, unlike in the text, two empty lines follow a function
            source = END_OF_FUNCTION.sub(r"\1\n\n\n\2", folded_solution(exercise))
        elif not tagged(cell, "for-solutions"):
            continue
        elif cell.cell_type == "markdown":
            exercise = source
            cells.append(new_markdown_cell(source.split("<details>")[0].rstrip()))
            continue
        elif tagged(cell, "nbval-check-output"):
            metadata = {"tags": ["nbval-check-output"]}
        cells.append(new_code_cell(source, metadata=metadata))

    code = [cell for cell in cells if cell.cell_type == "code" and not tagged(cell, "setup")]
    used = names_used("\n".join(cell.source for cell in code))
    for cell in code:
        if "SOLUTION" not in cell.source:
            cell.source = with_needed_imports(cell.source, used)
    number_cells(cells)
    kept = {"kernelspec", "language_info"} & notebook.metadata.keys()
    return new_notebook(cells=cells, metadata={key: notebook.metadata[key] for key in kept})


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """The lesson as it is handed out: nothing solved or executed; `notebook` is changed."""
    for cell in notebook.cells:
        if tagged(cell, "for-solutions") and cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def same_sources(one: NotebookNode, other: NotebookNode) -> bool:
    return sources(one) == sources(other)


def hand_out() -> None:
    """Write the lessons without their solutions into a new folder."""
    if HANDOUT.exists():
        sys.exit(f"{HANDOUT} exists; somebody may have changed the lessons in it. Remove it first.")
    HANDOUT.mkdir(parents=True)
    for path in LESSONS:
        lesson = nbformat.read(path, as_version=4)
        nbformat.write(without_solutions(lesson), HANDOUT / path.name)
    print("written:", HANDOUT)


def prepare_all() -> None:
    """Write the shared cells of every lesson, and the solutions that have changed."""
    folder = HERE / "solutions"
    folder.mkdir(exist_ok=True)
    for path in LESSONS:
        lesson = prepare(nbformat.read(path, as_version=4), path.stem)
        nbformat.write(lesson, path)
        solved = solutions(lesson, path.stem)
        target = folder / path.name
        if target.exists() and same_sources(solved, nbformat.read(target, as_version=4)):
            continue
        nbformat.write(solved, target)
        print(
            "written:", target.relative_to(HERE.parent), "(without outputs, until it is executed)"
        )


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--without-solutions", action="store_true")
    if parser.parse_args().without_solutions:
        hand_out()
    else:
        prepare_all()


if __name__ == "__main__":
    main()
