"""Write what all notebooks share: badges and facts under the title, the first cell, slide marks, and the solutions.

    python notebooks/prepare.py                       # after changing a lesson; execute.py then stores the outputs
    python notebooks/prepare.py --without-solutions   # the lessons to hand out, without solutions and outputs, into outputs/handout

The address of the repository stands in pyproject.toml. A solution notebook is its lesson's exercises with each stub
replaced by the solution that is folded into the text, so a solution stands in one place.
"""

import re
import sys
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
ADDRESS = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["urls"][
    "Repository"
]
LESSONS = sorted(HERE.glob("[0-9]*.ipynb"))
HANDOUT = HERE.parent / "outputs" / "handout"

# what is needed before; minutes on two CPU cores with the teaching model; minutes on a T4 with SDXL, computed
# (10 TFLOP/s: 41 s a picture of 30 steps, 1.1 s a training step), of these for training B-LoRAs that are then kept
FACTS = {
    "00_setup": ("a little Python", 1, 15, 0),
    "01_train_blora": ("notebook 0", 2, 70, 0),
    "02_inspect_block_attention": ("notebooks 0 and 1; tensors do not frighten you", 1, 40, 20),
    "03_style_transfer": ("notebook 1", 1.5, 230, 130),
    "04_text_stylization": ("notebook 3", 1.5, 120, 55),
    "05_consistent_style": ("notebook 3", 1, 110, 55),
}

FIRST_CELL = f'''# In a clone of the course this does nothing; on Colab and Kaggle it fetches the course and what is missing.
import importlib.util, os, subprocess, sys

for folder in ("notebooks", "..", "../../notebooks"):  # work in the folder of the lessons, wherever Jupyter was started
    if os.path.exists(f"{{folder}}/checks.py") and not os.path.exists("checks.py"):
        os.chdir(folder)
if not importlib.util.find_spec("blora_nb"):
    if not os.path.exists("checks.py"):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{ADDRESS}", "blora-nb"], check=True)
        os.chdir("blora-nb/notebooks")
    sys.path.insert(0, os.path.abspath(".."))
    from blora_nb.cli.check import install_missing

    install_missing()'''

FIGURE = re.compile(
    r"^(picture_grid|heat_map|line_figure|alpha_grid|seed_ranking|loss_curve|AlphaPanel|CheckpointPicker|figure)\(",
    re.M,
)


def head(stem):
    """Badges, and a table of what the lesson needs."""
    before, minutes, t4, training = FACTS[stem]
    page = f"{ADDRESS.removeprefix('https://github.com/')}/blob/main/notebooks/{stem}.ipynb"
    kept = f", {training} of them for B-LoRAs that are trained once and kept" if training else ""
    return f"""[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{page}) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/{page})

| | teaching model, two CPU cores | real SDXL on a T4 (computed, not run) |
|---|---|---|
| minutes | {minutes} | {t4}{kept} |
| memory | 1 GB | 11 GB of GPU memory |
| download | nothing beyond the repository | 8 GB, SDXL and the models that score |

**You need** {before}."""


def mark_slides(cell):
    """Headings and figures are slides; prose under a heading becomes the speaker's notes."""
    if cell.cell_type == "markdown":
        kind = "slide" if cell.source.startswith(("# ", "## ")) else "notes"
    else:
        kind = "subslide" if FIGURE.search(cell.source) else "skip"
    cell.metadata["slideshow"] = {"slide_type": kind}


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def prepare(notebook, stem):
    """The notebook with its shared cells as they should be; `notebook` is changed."""
    if not any(tagged(cell, "head") for cell in notebook.cells):
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(metadata={"tags": ["head"]}))
    for number, cell in enumerate(notebook.cells):
        if tagged(cell, "head"):
            cell.source = head(stem)
        if tagged(cell, "setup"):
            cell.source = FIRST_CELL
        mark_slides(cell)
        cell["id"] = f"cell-{number:02}"
    return notebook


def folded_solution(text):
    """The code between the solution marks of an exercise's text, marks included."""
    return re.search(r"```python\n(### BEGIN SOLUTION.*?### END SOLUTION)\n```", text, re.S)[1]


def solutions(notebook, stem):
    """A notebook of the lesson's exercises, solved."""
    number = int(stem[:2])
    cells = [
        nbformat.v4.new_markdown_cell(
            f"# {number} · Solutions\n\nTo the exercises of [{stem}](../{stem}.ipynb); made from its folded solutions by `python notebooks/prepare.py`."
        )
    ]
    text = None
    for cell in notebook.cells:
        if tagged(cell, "setup"):
            cells.append(nbformat.v4.new_code_cell(cell.source, metadata={"tags": ["setup"]}))
        elif tagged(cell, "for-solutions") and cell.cell_type == "markdown":
            text = cell.source
            cells.append(nbformat.v4.new_markdown_cell(text.split("<details>")[0].rstrip()))
        elif tagged(cell, "for-solutions"):
            checked = ["nbval-check-output"] if tagged(cell, "nbval-check-output") else []
            cells.append(
                nbformat.v4.new_code_cell(
                    cell.source, metadata={"tags": checked} if checked else {}
                )
            )
        elif tagged(cell, "stub"):
            cells.append(nbformat.v4.new_code_cell(folded_solution(text)))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"
    return nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            key: notebook.metadata[key]
            for key in ("kernelspec", "language_info")
            if key in notebook.metadata
        },
    )


def without_solutions(notebook):
    """The lesson as it is handed out: nothing solved, nothing executed; `notebook` is changed."""
    for cell in notebook.cells:
        if tagged(cell, "for-solutions") and cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\n*<details><summary>Solution</summary>.*?</details>", "", cell.source, flags=re.S
            )
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def same_sources(one, other):
    return [(c.cell_type, c.source) for c in one.cells] == [
        (c.cell_type, c.source) for c in other.cells
    ]


def main():
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--without-solutions", action="store_true")
    if parser.parse_args().without_solutions:
        if HANDOUT.exists():
            sys.exit(
                f"{HANDOUT} exists already. Remove it first; somebody may have changed the lessons in it."
            )
        HANDOUT.mkdir(parents=True)
        for path in LESSONS:
            nbformat.write(
                without_solutions(nbformat.read(path, as_version=4)), HANDOUT / path.name
            )
        print("written:", HANDOUT)
        return
    (HERE / "solutions").mkdir(exist_ok=True)
    for path in LESSONS:
        notebook = prepare(nbformat.read(path, as_version=4), path.stem)
        nbformat.write(notebook, path)
        solved, target = solutions(notebook, path.stem), HERE / "solutions" / path.name
        if not target.exists() or not same_sources(solved, nbformat.read(target, as_version=4)):
            nbformat.write(solved, target)
            print(
                "written:",
                target.relative_to(HERE.parent),
                "(its outputs are missing until it is executed)",
            )


if __name__ == "__main__":
    sys.exit(main())
