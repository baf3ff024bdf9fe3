"""Build the book: the lessons with their stored outputs, the measurements and the reference.

    python site/build.py                  # into outputs/site
    python site/build.py --to FOLDER

No notebook is executed. The texts stay where they are in the repository: they are gathered in a
temporary folder of the same layout, with links that work in the book, and Sphinx reads them there.
A warning is an error.
"""

import shutil
import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import lessons
import nbformat
import readme
from conf import PROJECT
from gallery import write_gallery
from links import Links
from PIL import Image
from readme import ROOT
from reference import write_reference
from sphinx.application import Sphinx

SITE = Path(__file__).resolve().parent
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.md"))
# in the order in which the README names them
GUIDES = sorted((ROOT / "docs").glob("*.md"), key=lambda path: readme.readme().find(path.name))
TEXTS = [
    *BENCHMARKS,
    *GUIDES,
    ROOT / "notebooks" / "TEACHING.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
PICTURES = [
    path
    for folder in ("docs", "benchmarks")
    for ending in ("png", "jpg")
    for path in (ROOT / folder).glob(f"*.{ending}")
]
# written here, so that links may lead there
WRITTEN = ["index.md", "gallery.md", "reference/index.md", "notebooks/solutions/index.md"]
# the figure that stands for a lesson: its number among those of the lesson
COVERS = {
    "02_inspect_block_attention": 3,
    "03_style_transfer": 6,
    "04_text_stylization": 1,
    "05_consistent_style": 1,
}
LOGO = ROOT / "blora_nb" / "data" / "examples" / "flower_neon.png"


def build(to: Path) -> int:
    """Build the book into a folder; returns how many warnings there were."""
    with TemporaryDirectory() as folder:
        book, doctrees = Path(folder) / "book", Path(folder) / "doctrees"
        book.mkdir()
        gather(book)
        app = Sphinx(
            srcdir=book,
            confdir=SITE,
            outdir=to,
            doctreedir=doctrees,
            buildername="html",
            confoverrides={
                "html_logo": str(book / "logo.png"),
                "html_favicon": str(book / "logo.png"),
            },
            status=None,
            freshenv=True,
        )
        app.build()
        return app._warncount


def gather(book: Path) -> None:
    """Write the sources of all pages into an empty folder."""
    sections = readme.sections()
    files = [*LESSONS, *SOLUTIONS, *TEXTS, *PICTURES]
    pages = {path.relative_to(ROOT).as_posix() for path in files}
    pages |= {f"{slug}.md" for slug in sections} | set(WRITTEN)
    links = Links(pages, sections, PROJECT["urls"]["Repository"])

    def write(name: str, text: str) -> None:
        target = book / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(links.rewrite(text, name), encoding="utf-8")

    for path in TEXTS:
        write(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for slug, text in sections.items():
        write(f"{slug}.md", text)
    for path in PICTURES:
        shutil.copy(path, book / path.relative_to(ROOT))
    for path in [*LESSONS, *SOLUTIONS]:
        write_notebook(path, book, links)
    write("notebooks/solutions/index.md", solutions_page())
    write_gallery(book, LESSONS)
    write_reference(book)
    write_covers(book)
    write("index.md", first_page(sections))


def write_notebook(path: Path, book: Path, links: Links) -> None:
    name = path.relative_to(ROOT).as_posix()
    notebook = lessons.for_book(lessons.read(path))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = links.rewrite(cell.source, name)
    target = book / name
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def write_covers(book: Path) -> None:
    """Write the logo, and a picture for the card of each lesson."""
    with Image.open(LOGO) as picture:
        picture.resize((96, 96)).save(book / "logo.png")
    (book / "covers").mkdir()
    for path in LESSONS:
        figures = lessons.figures(lessons.read(path))
        figure = figures[COVERS.get(path.stem, 0)]
        (book / "covers" / f"{path.stem}.png").write_bytes(figure.png)


def first_page(sections: dict[str, str]) -> str:
    """index.md with its blanks filled."""
    text = (SITE / "index.md").read_text(encoding="utf-8")
    trying, course = readme.commands()[:2]
    blanks = {
        "lead": readme.lead(),
        "try": trying,
        "course": course,
        "lessons": lesson_cards(),
        "contents": contents(sections),
    }
    for name, filling in blanks.items():
        text = text.replace(f"<!-- {name} -->", filling)
    return text


def lesson_cards() -> str:
    """A card for each lesson: its picture, its title, and what one does in it."""
    parts = ["::::{grid} 1 2 2 3", ":gutter: 3"]
    for path in LESSONS:
        parts += [
            f"\n:::{{grid-item-card}} {lessons.title(lessons.read(path))}",
            f":img-top: covers/{path.stem}.png",
            f":link: notebooks/{path.stem}\n:link-type: doc\n",
            as_sentence(readme.lessons()[path.stem]),
            ":::",
        ]
    return "\n".join([*parts, "::::"])


def as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def contents(sections: dict[str, str]) -> str:
    """The table of contents, which stands at the side of every page."""
    taught = [f"{lessons.title(lessons.read(path))} <notebooks/{path.stem}>" for path in LESSONS]
    measured = [f"benchmarks/{path.stem}" for path in BENCHMARKS]
    guides = [f"docs/{path.stem}" for path in GUIDES]
    parts = {
        "Lessons": [*taught, "gallery", "notebooks/TEACHING"],
        "Toolkit": [*guides, "reference/index", *sections],
        "Measurements": measured,
        "Appendix": ["notebooks/solutions/index", "CONTRIBUTING", "CHANGELOG"],
    }
    return "\n\n".join(toctree(entries, caption) for caption, entries in parts.items())


def toctree(entries: list[str], caption: str) -> str:
    head = ["```{toctree}", ":hidden:", f":caption: {caption}", ""]
    return "\n".join([*head, *entries, "```"])


def solutions_page() -> str:
    entries = ["```{toctree}", *(path.stem for path in SOLUTIONS), "```"]
    return "\n".join(["# Solutions", "", "Each lesson's exercises, solved.", "", *entries, ""])


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "outputs" / "site")
    to = parser.parse_args().to.resolve()
    warned = build(to)
    print(f"{warned} warnings; the first page is {to / 'index.html'}")
    return int(warned > 0)


if __name__ == "__main__":
    sys.exit(main())
