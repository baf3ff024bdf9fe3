"""Links between files of the repository become links between pages of the book."""

import posixpath
import re
from collections.abc import Collection

from readme import ROOT

# code, in which brackets mean something else, or the target of a link or picture
CODE_OR_TARGET = re.compile(r"^```.*?^```|`[^`\n]+`|(?<=\]\()[^)\s]+(?=\))", re.M | re.S)
ADDRESS_IN_TEXT = re.compile(r"^```.*?^```|`[^`\n]+`|(?<![(<\w])https?://[^\s<>)`]+\w", re.M | re.S)
ELSEWHERE = re.compile(r"^([a-z]+:|#)")


class Links:
    """Rewrites the links of a text.

    Attributes:
        pages: the paths of all files the book has, relative to its root and the repository's.
        sections: the slugs of the README's sections, each a page of its own.
        repository: address of the repository, for files the book does not have.
    """

    def __init__(self, pages: Collection[str], sections: Collection[str], repository: str) -> None:
        self.pages, self.sections, self.repository = pages, sections, repository

    def rewrite(self, text: str, page: str) -> str:
        """The Markdown `text` of `page` with links that work in the book."""

        def target(found: re.Match[str]) -> str:
            return found[0] if found[0].startswith("`") else self.target(found[0], page)

        return CODE_OR_TARGET.sub(target, with_links(text))

    def target(self, target: str, page: str) -> str:
        """Where a link leads in the book, or on the repository's page.

        Raises:
            FileNotFoundError: it leads nowhere.
        """
        path, _, anchor = target.partition("#")
        folder = posixpath.dirname(page)
        here = f"{self.repository}/blob/main/"
        if path.startswith(here) and path.removeprefix(here) in self.pages:
            path = path.removeprefix(here)
        elif ELSEWHERE.match(target):
            return target
        else:
            path = posixpath.normpath(posixpath.join(folder, path))
        if path == "README.md":
            path, anchor = (f"{anchor}.md", "") if anchor in self.sections else ("index.md", "")
        if f"{path}/index.md" in self.pages:
            path += "/index.md"
        if path in self.pages:
            found = posixpath.relpath(path, folder or ".")
        elif (ROOT / path).exists():
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            found = f"{self.repository}/{kind}/main/{path}"
        else:
            raise FileNotFoundError(f"{page} links to {target}, which does not exist.")
        return f"{found}#{anchor}" if anchor else found


def with_links(text: str) -> str:
    """The text with bare web addresses as links, as GitHub shows them."""

    def link(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("`") else f"<{found[0]}>"

    return ADDRESS_IN_TEXT.sub(link, text)
