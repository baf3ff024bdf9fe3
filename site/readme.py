"""What the book takes from the README: first paragraph, commands, list of lessons, a section."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## (.+)$", re.M)
CODE = re.compile(r"^```.*?^```$", re.M | re.S)
LESSON = re.compile(r"^\| \[(\d\w+)\][(\[].+?[)\]] \| (.+?) \|$", re.M)
REFERENCE = re.compile(r"^\[([^]]+)\]: (\S+)$", re.M)
NAMED = re.compile(r"\]\[([^]]+)\]")
# the sections that are pages of the book; the others only point to its pages
SECTIONS = ("what-is-not-there-yet",)


def readme() -> str:
    """The README, with the address of a link beside its text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    addresses = dict(REFERENCE.findall(text))
    return NAMED.sub(lambda found: f"]({addresses[found[1]]})", REFERENCE.sub("", text))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def lead() -> str:
    """The first paragraph: what B-LoRA is."""
    return readme().split("\n\n")[1]


def commands() -> list[str]:
    """The blocks of commands: those that name no language."""
    blocks = [block for block in CODE.findall(readme()) if block.startswith("```\n")]
    return [block.replace("```\n", "```bash\n", 1) for block in blocks]


def lessons() -> dict[str, str]:
    """The name of each lesson to what one does in it."""
    return dict(LESSON.findall(readme()))


def sections() -> dict[str, str]:
    """The slug of each section of `SECTIONS` to its text; its heading is the page's title.

    Raises:
        ValueError: the README has no such section.
    """
    _, *parts = HEADING.split(readme())
    texts = {slug(title): f"# {title}\n{text}" for title, text in zip(parts[::2], parts[1::2])}
    missing = sorted(set(SECTIONS) - texts.keys())
    if missing:
        raise ValueError(f"README.md has no section {', '.join(missing)}: see site/readme.py.")
    return {name: texts[name] for name in SECTIONS}
