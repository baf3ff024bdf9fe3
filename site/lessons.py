"""A notebook as the book shows it, with its stored outputs, and the figures it holds."""

import re
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

BADGE = re.compile(r"\[!\[([^]]+)\]\([^)]+\)\]")
FOLDED = re.compile(r"<details><summary>(.+?)</summary>\n+(.*?)\n*</details>", re.S)
SOLUTION_MARKS = re.compile(r"^### (BEGIN|END) SOLUTION\n?", re.M)
FURTHER_TITLE = re.compile(r"^# ", re.M)
HEADING = re.compile(r"^##+ (.+)$", re.M)


@dataclass
class Figure:
    """A figure of a lesson.

    Attributes:
        png: the bytes of a PNG file.
        caption: its text for those who cannot see it; empty for a plain picture.
        heading: the heading it stands under.
    """

    png: bytes
    caption: str
    heading: str


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def title(notebook: NotebookNode) -> str:
    """The title, without what follows its colon."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ").partition(":")[0]


def for_book(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed for the book: no first cell, solutions that fold, one title."""
    notebook.cells = [cell for cell in notebook.cells if "setup" not in tags(cell)]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.source = SOLUTION_MARKS.sub("", cell.source).strip()
            caption = next((text for _, text in pictures(cell) if text), "")
            if caption:
                cell.metadata["mystnb"] = {"image": {"alt": caption}}
            continue
        if number:
            cell.source = FURTHER_TITLE.sub("## ", cell.source)
        # a picture from another host would be a request to it
        cell.source = BADGE.sub(r"[\1]", cell.source).replace(") [Open", ") · [Open")
        cell.source = FOLDED.sub(as_dropdown, cell.source)
    raise_headings(notebook)
    return notebook


def raise_headings(notebook: NotebookNode) -> None:
    """Make headings of the third level ones of the second, where there are none of these."""
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    if not any(re.search(r"^## ", cell.source, re.M) for cell in texts):
        for cell in texts:
            cell.source = re.sub(r"^### ", "## ", cell.source, flags=re.M)


def as_dropdown(found: re.Match[str]) -> str:
    text = SOLUTION_MARKS.sub("", found[2])
    return f"::::{{dropdown}} {found[1]}\n{text}\n::::"


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def pictures(cell: NotebookNode) -> list[tuple[bytes, str]]:
    """The PNG files a cell has put out, each with its caption."""
    found = []
    for output in cell.get("outputs", []):
        png = output.get("data", {}).get("image/png")
        if png:
            caption = output.metadata.get("image/png", {}).get("alt", "")
            found.append((b64decode(png), caption))
    return found


def figures(notebook: NotebookNode) -> list[Figure]:
    """Every figure, in order."""
    found, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (HEADING.findall(cell.source) or [heading])[-1]
        else:
            found += [Figure(png, caption, heading) for png, caption in pictures(cell)]
    return found
