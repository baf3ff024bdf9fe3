"""What a folder of built HTML pages links to, loads and holds, read with html.parser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# the tags that make a browser load something when a page is opened, and where they name it
LOADING = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "script": "src",
    "source": "src",
    "video": "src",
}
# a <link> of these kinds is an address, nothing that is loaded
NOT_LOADED = {"canonical", "author", "index", "search", "next", "prev", "up", "copyright"}


@dataclass
class Page(HTMLParser):
    """One page.

    Attributes:
        anchors: every id in it.
        links: the targets of its links.
        loaded: the addresses of what is loaded when it is opened.
        pictures: the text for those who do not see it, of each picture.
    """

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given.get("alt", ""))
        kinds = set(given.get("rel", "").split())
        if given.get(LOADING.get(tag, "")) and not kinds & NOT_LOADED:
            self.loaded.append(given[LOADING[tag]])


def read_pages(folder: Path) -> dict[Path, Page]:
    """All pages of a folder, by their paths; the theme's templates in `_static` are none."""
    paths = [path.resolve() for path in sorted(folder.rglob("*.html"))]
    return {path: Page(path) for path in paths if "_static" not in path.parts}


def is_external(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def broken(pages: dict[Path, Page]) -> list[str]:
    """The links, and what is loaded, that lead to no file or to no anchor of a page."""
    found = []
    for page in pages.values():
        for address in [*page.links, *page.loaded]:
            if is_external(address) or address.startswith("data:"):
                continue
            parts = urlsplit(address)
            named = unquote(parts.path)
            target = (page.path.parent / named).resolve() if named else page.path
            anchor = unquote(parts.fragment)
            known = anchor in pages[target].anchors if target in pages else target.is_file()
            if not (known if anchor else target.is_file()):
                found.append(f"{page.path.name} → {address}")
    return found
